"""The zip file that a challenge server takes; there whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from rvos_deploy.errors import InputError


class Submission:
    """A zip file under way, for use in a ``with`` block; it is put in place when that ends well.

    Equal masks give equal files: entries carry no time.
    """

    def __init__(self, path: Path, root: str) -> None:
        """``root``: the folder inside the zip that holds the videos, "" or ending with a slash."""
        self._path, self._root = path, root
        self._temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._zip = ZipFile(self._temporary, "w", ZIP_STORED)  # PNG is compressed already
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; choose another file"
            ) from error

    def add(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Add files, by their name in the submission layout."""
        for name, content in files:
            self._zip.writestr(ZipInfo(self._root + name), content)

    def __enter__(self) -> Submission:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)
