"""Fetch published files into a cache; files are complete or absent, and their bytes stay equal.

An interrupted transfer is resumed. Each folder belongs to one address, and holds:

``NAME``              the whole file, whose sha256 is checked at each use
``NAME.part``         the bytes of an interrupted transfer, which the next transfer continues
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
"""Default limit of a file's size."""

_PART, _RECORD = ".part", ".origin.json"
_MAXIMUM_RECORD_BYTES = 1 << 16
_MAXIMUM_NAME = 200  # characters; a suffix must fit into the 255 of file systems


@dataclass(frozen=True)
class FetchedFile:
    """Hold a file of the cache.

    Args:
        path: path of the file.
        url: its address, without secrets.
        sha256: hash of its content, hex.
        bytes: its size.
        first_use: its sha256 was unknown before, and was recorded now.
    """

    path: Path
    url: str
    sha256: str
    bytes: int
    first_use: bool


class _Part(msgspec.Struct, frozen=True):
    """Hold version and size of the server's file at the start of ``NAME.part``."""

    version: Annotated[str, Meta(max_length=1024)] | None
    total: Count | None


class _Record(msgspec.Struct, frozen=True):
    """Hold the content of ``NAME.origin.json``; ``sha256`` is the hash at the first use."""

    schema: Literal[1]
    url: Annotated[str, Meta(max_length=1024)]
    sha256: Sha256 | None = None
    part: _Part | None = None


@dataclass(frozen=True)
class _Wanted:
    """Describe a file to fetch: its address with and without secrets, its path and limits."""

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
    """Return a file from the cache; fetch it first if it is missing.

    Args:
        source: an http or https address, not a path.
        cache: folder of all fetched files.
        sha256: hash of the file, hex; None: the first use records it, and later uses must agree.
        offline: fetch nothing.
        progress: called with the file's name, the bytes received and the total (None: unknown).
        maximum: greatest size of the file in bytes.

    Raises:
        InputError: the address cannot be fetched, the cache cannot be written, or another process
            fetches into it.
        DownloadError: the file cannot be fetched, or has another sha256 than expected. The bytes of
            a broken transfer are kept.
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
            if not wanted.path.exists():  # another process may just have fetched it
                return _fetch_new(wanted, progress)
    return _from_cache(wanted)


def cached_path(url: str, cache: Path) -> Path:
    """Return the path of a file of this address; files of one remote folder share a folder.

    Raises:
        DownloadError: the address does not end in a usable file name.
    """
    parts = urlsplit(url)
    folder, _, last = parts.path.rpartition("/")
    name = quote(unquote(last, errors="replace"), safe="")  # one form, safe on every file system
    if name.startswith(".") or len(name) > _MAXIMUM_NAME:
        raise DownloadError(
            f"{redact(url)} does not end in a usable file name; fetch it yourself, and give its "
            "path"
        )
    key = f"{parts.scheme}://{parts.netloc}{folder}/?{parts.query}"
    host = quote(parts.hostname or "", safe="")
    return cache / f"{host}-{hashlib.sha256(key.encode()).hexdigest()[:12]}" / name


def _from_cache(wanted: _Wanted) -> FetchedFile:
    """Check the cached file, and record it if the user put it there."""
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
    """Transfer the file, check it, and move it into place. The caller has locked the folder."""
    record = _read_record(wanted)
    expected = wanted.sha256 or record.sha256
    part = wanted.part
    discard_stale(part.parent, glob.escape(wanted.record.name))  # left by a killed process
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
        # The record comes first, because a file without a record is accepted with any content.
        _write_record(wanted, _Record(1, wanted.shown, found))
        part.replace(wanted.path)
    except OSError as error:
        raise InputError(cannot_write(part, error)) from None
    return FetchedFile(wanted.path, wanted.shown, found, size, expected is None)


def _transfer(wanted: _Wanted, record: _Record, progress: CountProgress) -> None:
    """Complete ``NAME.part``, from its present end if the server can continue."""
    held = wanted.part.stat().st_size if wanted.part.exists() else 0
    if held and record.part is not None and held == record.part.total:
        return  # the last process was stopped while it checked the whole file
    version = record.part.version if record.part else None
    with open_transfer(wanted.url, held, version) as transfer:
        _check_transfer(wanted, transfer, record)
        if not transfer.offset:
            wanted.part.unlink(missing_ok=True)
            new = _Part(transfer.version, transfer.total)
            _write_record(wanted, _Record(1, wanted.shown, record.sha256, new))
        _copy(wanted, transfer, progress)


def _check_transfer(wanted: _Wanted, transfer: Transfer, record: _Record) -> None:
    """Refuse a transfer that cannot be stored or trusted, before a byte is written."""
    if not transfer.detects_truncation and wanted.sha256 is None and record.sha256 is None:
        raise DownloadError(
            f"{wanted.shown}: the server does not say how long the file is, so a truncated file "
            "would go unnoticed; fetch it with a browser, and give its path"
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
        kept += f", which continues from {wanted.part}"
    stopping.set_hint(kept)
    progress(wanted.path.name, done, transfer.total)
    try:
        # Unbuffered, so the file holds all received bytes, however the process ends.
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
            f"{wanted.record} is damaged ({one_line(error)}); delete it to accept the file as it is"
        ) from None


def _write_record(wanted: _Wanted, record: _Record) -> None:
    with replacing(wanted.record) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
