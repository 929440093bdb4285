"""Write files that are complete or absent: temporary names, renames, locks and hashes.

This module registers every temporary file and folder of the process, so that a process that must
end at once can remove all of them (``discard_all``).
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from rvos_deploy.errors import InputError

if sys.platform != "win32":
    import fcntl

_SUFFIX = ".part"
_RANDOM = 12  # hex digits in a temporary's name
_LONGEST = 40  # characters kept of a name, so that the whole name fits the system's 255 bytes
_STREAM = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d+)|/dev/(stdin|stdout|stderr)")
_TRIES = 100  # names for a temporary folder; another process rarely takes even one
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
# What a file system answers that has nothing to wait for, or does not let this user wait.
_NO_SYNC = {errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS, errno.EACCES}

_temporaries: dict[Path, int | None] = {}
"""Temporary paths; a folder has the descriptor that holds its lock while the process lives."""
# Held while a temporary is created; a process that ends at once never releases it.
_creating = threading.Lock()
_held = threading.local()


def create_temporary(path: Path) -> Path:
    """Create an empty hidden file beside ``path``, with an unpredictable name.

    The file lies beside ``path``, because a rename is atomic only within one file system. Exclusive
    creation follows no planted symlink, and two processes never share a file. Pass the result to
    ``put_in_place`` or to ``discard``.
    """
    temporary = _temporary_name(path)
    with _creating:
        # Registered first, so that a signal between the two lines cannot leave the file.
        _temporaries[temporary] = None
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except OSError:
            _forget(temporary)
            raise
    try:
        os.close(descriptor)
    except OSError:
        discard(temporary)
        raise
    return temporary


def create_temporary_folder(path: Path) -> Path:
    """Create an empty hidden folder beside ``path``; see ``create_temporary``.

    Temporary folders that killed processes left for the same ``path`` are removed.
    """
    for stale in _temporaries_of(path.parent, glob.escape(path.name[:_LONGEST])):
        with suppress(OSError):
            if stale.is_dir() and (lock := _lock(stale, only=True)) is not None:
                discard(stale)  # its process has ended
                os.close(lock)
    for _ in range(_TRIES):
        temporary = _temporary_name(path)
        with _creating:
            _temporaries[temporary] = None
            try:
                temporary.mkdir()
            except OSError:
                _forget(temporary)
                raise
        if _keep(temporary):
            return temporary
        discard(temporary)
    raise OSError(errno.EBUSY, "other processes removed each new temporary folder", str(path))


def _keep(temporary: Path) -> bool:
    """Lock a new temporary folder; return False where another process takes it for a stale one.

    Until the lock is there, the folder looks like that of a process that has ended.
    """
    try:
        lock = _lock(temporary)
    except FileNotFoundError:
        return False
    except OSError:
        discard(temporary)
        raise
    if lock is None:
        return False
    _temporaries[temporary] = lock
    # The other process may have removed the folder before the lock of what was opened.
    return temporary.is_dir()


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``, and replace a file there."""
    temporary.replace(path)
    _forget(temporary)


def put_folder_in_place(temporary: Path, path: Path, *, overwrite: bool = False) -> None:
    """Rename a folder to ``path``.

    With ``overwrite``, an existing folder is removed after the new one is in place. Where the
    system can exchange names atomically, ``path`` is complete at any moment.

    Raises:
        OSError: the rename failed, or ``path`` exists and ``overwrite`` is False.
    """
    if not overwrite or not os.path.lexists(path):
        temporary.rename(path)
    elif _exchange(temporary, path):
        discard(temporary)
    else:
        old = _temporary_name(path)  # not registered, because it is the only copy until the end
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
        discard(old)
    _forget(temporary)


def discard(temporary: Path) -> None:
    """Remove a temporary file or folder, if it exists. Raises nothing."""
    with suppress(OSError):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    _forget(temporary)


def discard_all(*, ending: bool = False) -> None:
    """Remove every temporary file and folder of this process.

    ``ending``: the process ends at once. Its other threads run until then, so no new temporary may
    be created, and a folder into which they still write is removed again.
    """
    if ending:
        # A signal may have interrupted a creation; then the interrupted thread holds the lock.
        _creating.acquire(timeout=0.5)
    for temporary in list(_temporaries):
        discard(temporary)
        for _ in range(20 if ending else 0):
            if not os.path.lexists(temporary):
                break
            time.sleep(0.01)
            discard(temporary)


def discard_stale(folder: Path, name: str) -> None:
    """Remove temporaries of the file ``name`` that killed processes left in ``folder``.

    ``name`` may contain wildcards. The caller must hold the lock under which the files are created.
    """
    for path in _temporaries_of(folder, name):
        discard(path)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file, which becomes ``path`` if the block succeeds, else is removed.

    A symlink at ``path`` is replaced, never followed. For an output file that a user named, use
    ``writing``. ``durable``: after a power cut, ``path`` is the old file or the new one; at the end
    of the block, the new one is on the disk.
    """
    temporary = create_temporary(path)
    try:
        yield temporary
        if durable:
            sync(temporary)  # first the content, so that the name never leads to an empty file
        put_in_place(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        discard(temporary)


@contextmanager
def replacing_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder, which becomes ``path`` if the block succeeds.

    Missing parents are created, and removed if the block fails. Raises as ``put_folder_in_place``.
    """
    target = Path(os.path.realpath(path))
    with made_folder(target.parent):
        temporary = create_temporary_folder(target)
        try:
            yield temporary
            put_folder_in_place(temporary, target, overwrite=overwrite)
        finally:
            discard(temporary)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yield a folder among the system's temporary files that only this user reads.

    It is removed with the block; where the process is killed, by the next one of this ``name``.
    """
    folder = create_temporary_folder(Path(tempfile.gettempdir()) / name)
    try:
        folder.chmod(0o700)
        yield folder
    finally:
        discard(folder)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary file, for an output file that the user named.

    This works as ``replacing``, but replaces a symlink's target instead of the symlink, keeps its
    mode, and creates folders. An existing special file (a device, a FIFO, ``/dev/stdout``) is
    written into if the block succeeds.

    Raises:
        OSError: ``path`` is a folder, may not be written, or cannot be written.
    """
    if _is_special(path):
        spool = create_temporary(Path(tempfile.gettempdir()) / path.name)
        try:
            yield spool
            _copy_into(spool, path)
        finally:
            discard(spool)
        return
    target = Path(os.path.realpath(path))
    with made_folder(target.parent), replacing(target) as temporary:
        if path.exists():
            # As for any program, the system decides whether this path may be written.
            os.close(os.open(path, os.O_WRONLY))
            shutil.copymode(target, temporary)
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Write an output file that the user named, complete or not at all (see ``writing``).

    Raises:
        InputError: the file cannot be written there.
    """
    try:
        with writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(cannot_write(path, error)) from error


def cannot_write(path: Path, error: BaseException) -> str:
    """Return one line that says why ``path`` cannot be written, and what to do."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    why = " ".join(str(text).split())
    number = getattr(error, "errno", None)
    fix = "choose another place, or make it writable"
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "free some space (or raise the limit), or choose another place"
    return f"{path} cannot be written: {why}; {fix}"


def check_output_file(path: Path) -> None:
    """Refuse an output file that cannot be written before the work starts, not after it.

    Raises:
        InputError: ``path`` is a folder, or its own folder can be neither used nor created.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file")
        if os.path.lexists(path) and not path.is_symlink():
            place = path
        else:
            place = Path(os.path.realpath(path)).parent
            while not os.path.lexists(place):
                place = place.parent
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{place} is not a folder")
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, f"{place} may not be written")
    except OSError as error:
        raise InputError(cannot_write(path, error)) from error


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Create a folder and its parents; remove new ones that are empty at the end of the block.

    Raises OSError: the folder cannot be created.
    """
    missing = list(takewhile(lambda folder: not os.path.lexists(folder), (path, *path.parents)))
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder if it is empty. Raises nothing."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Lock ``folder`` for this thread, without a lock file that could be left behind.

    ``purpose`` completes "another process is ...". The lock ends with the process. A thread may
    lock a folder again that it has locked. File systems without locks are not protected.

    Raises:
        InputError: another process or thread has locked the folder.
    """
    held = _held.__dict__.setdefault("folders", set())
    status = folder.stat()
    key = (status.st_dev, status.st_ino)
    if key in held:
        yield
        return
    lock = _lock(folder)
    if lock is None:
        raise InputError(
            f"another process is {purpose} {folder}; wait for it, or choose another folder"
        )
    held.add(key)
    try:
        yield
    finally:
        held.discard(key)
        os.close(lock)


@contextmanager
def holding(folder: Path, purpose: str) -> Iterator[None]:
    """Create and lock a folder: ``made_folder`` and ``locked`` together.

    Raises:
        InputError: the folder cannot be created, or another process or thread has locked it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(folder))
            stack.enter_context(locked(folder, purpose))
        except OSError as error:
            raise InputError(cannot_write(folder, error)) from error
        yield


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises OSError: the disk failed. File systems that cannot wait are not waited for.
    """
    if sys.platform == "win32" and path.is_dir():  # folders cannot be opened there
        return
    _synced(path, os.fsync)


def sync_file_system(folder: Path) -> None:
    """Wait until all that was written to a folder's file system is on the disk.

    For hundreds of small files this is far faster than ``sync`` of each. Systems other than Linux
    begin to write, and may not wait.

    Raises OSError: the disk failed.
    """
    if not sys.platform.startswith("linux"):
        if hasattr(os, "sync"):
            os.sync()
        return
    import ctypes

    wait = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if wait is None:
        os.sync()
        return

    def sync_all(descriptor: int) -> None:
        if wait(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))

    _synced(folder, sync_all)


def _synced(path: Path, wait: Callable[[int], None]) -> None:
    try:
        # Windows flushes only what may be written.
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            wait(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_regular_file(path: Path, maximum: int, *, private: bool = False) -> bytes:
    """Read a regular file of at most ``maximum`` bytes once, and return its content.

    A FIFO, a device or a folder is refused without waiting for it. ``private``: a file that
    another user owns or may write is refused too.

    Raises:
        OSError: the file cannot be read, is refused, or is larger.
    """
    # O_NONBLOCK: opening a FIFO without a writer would block; regular files ignore the flag.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if private and not _is_private(status):
            raise PermissionError(errno.EPERM, "another user may have written it", str(path))
        if status.st_size > maximum:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, at most {maximum}", str(path))
        content = file.read(status.st_size)
        if file.read(1):
            raise OSError(errno.EBUSY, "it grew while it was read", str(path))
    return content


def _is_private(status: os.stat_result) -> bool:
    """Tell whether only this user (and root) may have written a file; False where unknown."""
    if sys.platform == "win32":
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _temporary_name(path: Path) -> Path:
    random = secrets.token_hex(_RANDOM // 2)
    return path.with_name(f".{path.name[:_LONGEST]}.{random}{_SUFFIX}")


def _temporaries_of(folder: Path, name: str) -> list[Path]:
    """List other processes' temporaries of files called ``name``, which may contain wildcards."""
    ours = re.compile(rf".*\.[0-9a-f]{{{_RANDOM}}}{re.escape(_SUFFIX)}")
    found = folder.glob(f".{name}.*{_SUFFIX}")
    return [path for path in found if ours.fullmatch(path.name) and path not in _temporaries]


def _forget(temporary: Path) -> None:
    lock = _temporaries.pop(temporary, None)
    if lock is not None:
        os.close(lock)


def _lock(folder: Path, *, only: bool = False) -> int | None:
    """Return a descriptor that locks a folder until it is closed; None if another one locks it.

    On a file system without locks, the descriptor locks nothing, or ``only`` raises OSError.
    """
    if sys.platform == "win32":  # folders cannot be locked there
        return os.open(os.devnull, os.O_RDONLY)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        if only or error.errno not in _NO_LOCKS:
            raise
        return os.open(folder, os.O_RDONLY)
    return descriptor


def _is_special(path: Path) -> bool:
    """Tell whether ``path`` is an existing special file, or names an open file of this process."""
    # /dev/stdout may be a regular file, and replacing that file would cut off the shell's output.
    if _STREAM.fullmatch(str(path.absolute())):
        return True
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return not stat.S_ISREG(mode)


def _copy_into(source: Path, path: Path) -> None:
    """Write into a device, a FIFO or an open file, without truncation, at its current position."""
    stream = _STREAM.fullmatch(str(path.absolute()))
    if stream is None:
        descriptor = os.open(path, os.O_WRONLY)
    else:
        sys.stdout.flush()
        number = stream[1] or {"stdin": 0, "stdout": 1, "stderr": 2}[stream[2]]
        descriptor = os.dup(int(number))
    with source.open("rb") as content, os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(content, target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically; return False if the system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    if rename(here, names[0], here, names[1], exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(second))
