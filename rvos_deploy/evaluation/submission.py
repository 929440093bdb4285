"""Write the zip file for a challenge server, complete or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, writing


class Submission:
    """Write a zip file in a ``with`` block; it gets its final name if the block succeeds.

    Equal masks give equal files, because entries carry no time. Raises InputError: the file cannot
    be written (see ``files.writing``).
    """

    def __init__(self, path: Path, root: str) -> None:
        """Open the file; ``root`` is its folder of videos, "" or a name that ends with a slash."""
        self._path, self._root = path, root
        with self._errors(), ExitStack() as undo:
            temporary = undo.enter_context(writing(path))
            self._zip = ZipFile(temporary, "w", ZIP_STORED)  # PNG is compressed already
            self._place = undo.pop_all()

    def add(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Add files by their name in the submission layout."""
        with self._errors():
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
        if error is not None:
            with suppress(OSError, ValueError):  # the first exception is more useful
                self._zip.close()
            self._place.__exit__(kind, error, trace)
            return
        with self._errors(), self._place:
            self._zip.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(cannot_write(self._path, error)) from error
