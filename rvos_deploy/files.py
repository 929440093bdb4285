"""Files that are complete or absent: temporary names, renames, locks and hashes, each once.

Every temporary file and folder of this process is registered here, so that a process that must end
at once (``discard_all``) leaves none of them behind.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rvos_deploy.errors import InputError

_SUFFIX = ".part"
_temporaries: set[Path] = set()
# Held while a temporary is made, and for ever by a process that ends at once.
_creating = threading.Lock()


def create_temporary(path: Path) -> Path:
    """Create an empty hidden file beside ``path``, with a name that nobody can foresee.

    Beside, because a rename is atomic only within one file system. The file is created exclusively:
    a symlink that somebody planted is never followed, and two processes never share a file. Pass
    the result to ``put_in_place`` or to ``discard``.
    """
    temporary = _temporary_name(path)
    with _creating:
        # Registered first: a signal between the two lines must not leave the file behind.
        _temporaries.add(temporary)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def create_temporary_folder(path: Path) -> Path:
    """Create an empty hidden folder beside ``path``; see ``create_temporary``."""
    temporary = _temporary_name(path)
    with _creating:
        _temporaries.add(temporary)
        temporary.mkdir()
    return temporary


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``, which is replaced when it is a file."""
    temporary.replace(path)
    _temporaries.discard(temporary)


def discard(temporary: Path) -> None:
    """Remove a temporary file or folder. Raises nothing; a missing one is no error."""
    with suppress(OSError):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    _temporaries.discard(temporary)


def discard_all(*, ending: bool = False) -> None:
    """Remove every temporary file and folder of this process.

    ``ending``: the process ends at once. Its other threads run on until then, so no temporary is
    made any more, and a folder into which they still write is removed again.
    """
    if ending:
        # A signal may have come in the middle of making one: then its thread holds the lock.
        _creating.acquire(timeout=0.5)
    for temporary in list(_temporaries):
        discard(temporary)
        for _ in range(20 if ending else 0):
            if not os.path.lexists(temporary):
                break
            time.sleep(0.01)
            discard(temporary)


def discard_stale(folder: Path) -> None:
    """Remove temporaries that killed processes left in ``folder``, which must be locked."""
    for path in folder.glob(f".*{_SUFFIX}"):
        if path not in _temporaries:
            discard(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it becomes ``path`` when the block ends well, else it goes away.

    A symlink at ``path`` is replaced, never followed. For a path that a user named as an output
    file, use ``writing``.
    """
    temporary = create_temporary(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        discard(temporary)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a name to write to, for an output file that the user named.

    As ``replacing``, but what exists and is no regular file (a device, a FIFO, ``/dev/stdout``) is
    written into, and a symlink's target is replaced instead of the symlink. Folders are made.
    """
    if _is_special(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        yield temporary


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Hold ``folder`` for this process, without a file that could be left behind.

    ``purpose`` completes "another process is ...". The lock ends with the process.

    Raises:
        InputError: another process holds the folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows: a folder cannot be locked there
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is {purpose} {folder}; wait for it, or choose another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_regular_file(path: Path, maximum: int) -> bytes:
    """The content of a regular file of at most ``maximum`` bytes, read once.

    Anything else (a FIFO, a device, a folder) is refused without waiting for it.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    # A FIFO without a writer would block the call; the flag changes nothing for regular files.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > maximum:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, at most {maximum}", str(path))
        content = file.read(status.st_size)
        if file.read(1):
            raise OSError(errno.EBUSY, "it grew while it was read", str(path))
    return content


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_SUFFIX}")


def _is_special(path: Path) -> bool:
    """Whether ``path`` exists and is no regular file, or names an open file of this process."""
    # /dev/stdout may lead to a regular file: replacing that file would cut off the shell's output.
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
