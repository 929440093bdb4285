"""Fetch published files into a cache: complete or absent, resumed, and always the same bytes.

A file lies in a folder of its address, with two neighbours:

``NAME``              the whole file, whose sha256 is checked at each use
``NAME.part``         what an interrupted transfer left; the next one continues it
``NAME.origin.json``  the address, the sha256 of the first use, and the version of ``NAME.part``
"""

from __future__ import annotations

import glob
import hashlib
import shutil
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, unquote, urlsplit

import msgspec
from msgspec import Meta

from rvos_deploy import stopping
from rvos_deploy.bundle.manifest import Count, Sha256
from rvos_deploy.console.output import mebibytes
from rvos_deploy.errors import DownloadError, InputError, one_line
from rvos_deploy.export.http_transfer import (
    BrokenConnectionError,
    Transfer,
    check_url,
    is_page,
    open_transfer,
    read_chunks,
    refuse_page,
)
from rvos_deploy.files import (
    cannot_write,
    discard_stale,
    holding,
    read_regular_file,
    replacing,
    sha256_file,
)
from rvos_deploy.progress import CountProgress, ignore_counts
from rvos_deploy.redaction import redact

MAXIMUM_BYTES = 16 << 30
"""Largest file that is fetched, unless another limit is given."""

"""Called with a file's name, the bytes that are here, and those of the whole file (None: nobody
knows)."""

_PART, _RECORD = ".part", ".origin.json"
_MAXIMUM_RECORD_BYTES = 1 << 16
_MAXIMUM_NAME = 200  # characters: with a suffix, at most the 255 of file systems


@dataclass(frozen=True)
class FetchedFile:
    """A file in the cache.

    Args:
        path: of the file.
        url: its address, without secrets.
        sha256: of its content, hex.
        bytes: its size.
        first_use: nobody knew its sha256 before; it was recorded now.
    """

    path: Path
    url: str
    sha256: str
    bytes: int
    first_use: bool


class _Part(msgspec.Struct, frozen=True):
    """What the server's file was when ``NAME.part`` was begun: its version and its bytes."""

    version: Annotated[str, Meta(max_length=1024)] | None
    total: Count | None


class _Record(msgspec.Struct, frozen=True):
    """What ``NAME.origin.json`` holds; ``sha256`` is that of the first use."""

    schema: Literal[1]
    url: Annotated[str, Meta(max_length=1024)]
    sha256: Sha256 | None = None
    part: _Part | None = None


@dataclass(frozen=True)
class _Wanted:
    """A file to fetch: its address, as it is and as it may be shown, and its place."""

    url: str
    shown: str
    path: Path
    sha256: str | None
    maximum: int

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + _PART)

    @property
    def record(self) -> Path:
        return self.path.with_name(self.path.name + _RECORD)


def fetch(
    source: str,
    cache: Path,
    *,
    sha256: str | None = None,
    offline: bool = False,
    progress: CountProgress = ignore_counts,
    maximum: int = MAXIMUM_BYTES,
) -> FetchedFile:
    """Return a file from the cache, fetched first where it is not there.

    Args:
        source: an http or https address; a path is no source.
        cache: folder of all that was ever fetched.
        sha256: of the file, hex; None: it is recorded at the first use, and must stay the same.
        offline: fetch nothing.
        progress: told how far a transfer is.
        maximum: bytes that the file may have.

    Raises:
        InputError: an address that cannot be fetched, a cache that cannot be written, or one that
            another process fetches into.
        DownloadError: the file cannot be had, or is not the one that was expected. What a broken
            transfer brought is kept.
    """
    check_url(source)
    wanted = _Wanted(source, redact(source), cached_path(source, cache), sha256, maximum)
    if not wanted.path.exists():
        if offline:
            raise DownloadError(
                f"{wanted.shown} is not in the cache, and --offline fetches nothing; fetch it on "
                f"another machine, and put it at {wanted.path}"
            )
        with holding(wanted.path.parent, "fetching into"):
            if not wanted.path.exists():  # another process may just have ended
                return _fetch_new(wanted, progress)
    return _from_cache(wanted)


def cached_path(url: str, cache: Path) -> Path:
    """Return where a file of this address lies; files of one folder there share one here.

    Raises:
        DownloadError: the address ends in no usable file name.
    """
    parts = urlsplit(url)
    folder, _, last = parts.path.rpartition("/")
    name = quote(unquote(last, errors="replace"), safe="")  # one form, safe on every file system
    if name.startswith(".") or len(name) > _MAXIMUM_NAME:
        raise DownloadError(
            f"{redact(url)} ends in no usable file name; fetch it yourself, and give its path"
        )
    key = f"{parts.scheme}://{parts.netloc}{folder}/?{parts.query}"
    host = quote(parts.hostname or "", safe="")
    return cache / f"{host}-{hashlib.sha256(key.encode()).hexdigest()[:12]}" / name


def _from_cache(wanted: _Wanted) -> FetchedFile:
    """Check the file that is there, and record it where it was put there by hand."""
    expected = wanted.sha256 or _read_record(wanted).sha256
    try:
        found, size = sha256_file(wanted.path), wanted.path.stat().st_size
        page = is_page(wanted.path)
    except OSError as error:
        raise DownloadError(
            f"{wanted.path} cannot be read ({one_line(error.strerror or error)}); delete it to "
            "fetch it again"
        ) from None
    if expected is None and page:
        raise DownloadError(
            f"{wanted.path} is a web page, not the file of {wanted.shown}; delete it to fetch it "
            "again"
        )
    if expected not in (None, found):
        accept = "" if wanted.sha256 else f"; to accept it, delete {wanted.record}"
        raise DownloadError(
            f"{wanted.path} has the sha256 {found}, needed {expected} ({_known_from(wanted)}); "
            f"delete it to fetch it again{accept}"
        )
    if expected is None:
        try:
            _write_record(wanted, _Record(1, wanted.shown, found))
        except OSError as error:
            raise InputError(cannot_write(wanted.record, error)) from None
    return FetchedFile(wanted.path, wanted.shown, found, size, expected is None)


def _fetch_new(wanted: _Wanted, progress: CountProgress) -> FetchedFile:
    """Transfer the file, check it and put it in place. The caller holds the folder."""
    record = _read_record(wanted)
    expected = wanted.sha256 or record.sha256
    part = wanted.part
    discard_stale(part.parent, glob.escape(wanted.record.name))  # of a process that was killed
    try:
        _transfer(wanted, record, progress)
        found, size = sha256_file(part), part.stat().st_size
        if not size:
            part.unlink()
            raise DownloadError(f"{wanted.shown} is empty; check the address")
        if is_page(part):
            part.unlink()
            refuse_page(wanted.shown)
        if expected not in (None, found):
            part.unlink()
            raise DownloadError(_unexpected(wanted, found, expected))
        # First the record: a file without one is accepted, whatever it holds.
        _write_record(wanted, _Record(1, wanted.shown, found))
        part.replace(wanted.path)
    except OSError as error:
        raise InputError(cannot_write(part, error)) from None
    return FetchedFile(wanted.path, wanted.shown, found, size, expected is None)


def _transfer(wanted: _Wanted, record: _Record, progress: CountProgress) -> None:
    """Bring ``NAME.part`` to its full length, from where it stands if the server can."""
    held = wanted.part.stat().st_size if wanted.part.exists() else 0
    if held and record.part is not None and held == record.part.total:
        return  # the last try was stopped while it checked the whole file
    version = record.part.version if record.part else None
    with open_transfer(wanted.url, held, version) as transfer:
        _check_transfer(wanted, transfer, record)
        if not transfer.offset:
            wanted.part.unlink(missing_ok=True)
            new = _Part(transfer.version, transfer.total)
            _write_record(wanted, _Record(1, wanted.shown, record.sha256, new))
        _copy(wanted, transfer, progress)


def _check_transfer(wanted: _Wanted, transfer: Transfer, record: _Record) -> None:
    """Refuse, before any byte is written, what could not be kept or not be trusted."""
    if not transfer.cut_shows and wanted.sha256 is None and record.sha256 is None:
        raise DownloadError(
            f"{wanted.shown}: the server does not say how long the file is, so a cut one could not "
            "be told from a whole one; fetch it with a browser, and give its path"
        )
    if transfer.total is None:
        return
    if transfer.total > wanted.maximum:
        raise _too_large(wanted, f"{transfer.total}")
    folder = wanted.path.parent
    free, needed = shutil.disk_usage(folder).free, transfer.total - transfer.offset
    if needed > free:
        raise InputError(
            f"{wanted.shown} needs {mebibytes(needed)} in {folder}, where {mebibytes(free)} are "
            "free; free some space, or choose another folder by --cache"
        )


def _copy(wanted: _Wanted, transfer: Transfer, progress: CountProgress) -> None:
    done = transfer.offset
    kept = "run the command again"
    if transfer.version is not None:
        kept += f", which goes on from what {wanted.part} keeps"
    stopping.set_hint(kept)
    progress(wanted.path.name, done, transfer.total)
    try:
        # Unbuffered: whatever ends the process, all that came is in the file.
        with wanted.part.open("ab" if done else "wb", buffering=0) as file:
            for chunk in read_chunks(transfer):
                _write_all(file, chunk)
                done += len(chunk)
                if done > wanted.maximum:
                    raise _too_large(wanted, f"more than {wanted.maximum}")
                progress(wanted.path.name, done, transfer.total)
    except BrokenConnectionError as error:
        raise DownloadError(f"{wanted.shown}: the connection {error}; {kept}") from None
    finally:
        stopping.set_hint("")


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _too_large(wanted: _Wanted, found: str) -> DownloadError:
    wanted.part.unlink(missing_ok=True)
    return DownloadError(
        f"{wanted.shown} has {found} bytes, at most {wanted.maximum} are expected; check the "
        "address, or fetch it yourself and give its path"
    )


def _unexpected(wanted: _Wanted, found: str, expected: str | None) -> str:
    text = (
        f"{wanted.shown} gave a file with the sha256 {found}, needed {expected} "
        f"({_known_from(wanted)}); it was not kept: "
    )
    if wanted.sha256:
        return text + "fetch it again, or give the path of a file that you trust"
    return text + f"fetch it again, or delete {wanted.record} to accept the new file"


def _known_from(wanted: _Wanted) -> str:
    return "the published file's" if wanted.sha256 else "recorded at its first use"


def _read_record(wanted: _Wanted) -> _Record:
    try:
        raw = read_regular_file(wanted.record, _MAXIMUM_RECORD_BYTES)
    except FileNotFoundError:
        return _Record(1, wanted.shown)
    except OSError as error:
        raise DownloadError(
            f"{wanted.record} cannot be read ({one_line(error.strerror or error)}); delete it"
        ) from None
    try:
        return msgspec.json.decode(raw, type=_Record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DownloadError(
            f"{wanted.record} is damaged ({one_line(error)}); delete it, and the file will be "
            "accepted as it is"
        ) from None


def _write_record(wanted: _Wanted, record: _Record) -> None:
    with replacing(wanted.record) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
