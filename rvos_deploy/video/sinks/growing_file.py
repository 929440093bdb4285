"""Write a text file piece by piece under a temporary name, and rename it when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, create_temporary, discard, put_in_place


class GrowingFile:
    """Hold an unfinished file. Its methods raise InputError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        """Name the file; ``open`` creates it."""
        self._path = path
        self._temporary: Path | None = None
        self._file: IO[bytes] | None = None
        self._mark: int | None = None

    def open(self, beginning: str = "") -> None:
        """Create the file under a temporary name."""
        with self._errors(), ExitStack() as undo:
            temporary = create_temporary(self._path)
            undo.callback(discard, temporary)
            file = undo.enter_context(temporary.open("w+b"))
            file.write(beginning.encode())
            self._temporary, self._file = temporary, file
            undo.pop_all()

    def append(self, text: str) -> int:
        """Append text, and return the byte at which it begins."""
        with self._errors():
            file = self._opened()
            place = file.tell()
            file.write(text.encode())
            return place

    def mark(self) -> None:
        """Remember the end, for :meth:`withdraw`."""
        self._mark = None
        with self._errors():
            self._mark = self._opened().tell()

    def withdraw(self) -> None:
        """Cut off what was appended since :meth:`mark`. Safe to call twice. Raises nothing."""
        if self._mark is None or self._file is None:
            return
        with suppress(OSError, ValueError):
            self._file.seek(self._mark)
            self._file.truncate()

    def append_all(self, other: GrowingFile) -> None:
        """Append the content of another file."""
        with self._errors():
            source = other._opened()
            source.seek(0)
            shutil.copyfileobj(source, self._opened())

    def read(self, place: int, length: int) -> str:
        """Return the text of ``length`` bytes from ``place`` on."""
        with self._errors():
            file = self._opened()
            file.seek(place)
            return file.read(length).decode()

    def complete(self) -> None:
        """Close the file, and rename it to its final name."""
        with self._errors():
            self._opened().close()
            assert self._temporary is not None
            put_in_place(self._temporary, self._path)

    def abort(self) -> None:
        """Remove the unfinished file; do nothing after :meth:`complete`. Raises nothing."""
        if self._file is None or self._temporary is None:
            return
        with suppress(OSError):  # closing flushes the buffer, which fails again on a full disk
            self._file.close()
        discard(self._temporary)

    def _opened(self) -> IO[bytes]:
        assert self._file is not None, "open the file first"
        return self._file

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed after an earlier failed write
            raise InputError(cannot_write(self._path, error)) from error
