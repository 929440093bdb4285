"""``result.json``: written frame by frame, so that a long video takes no memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, create_temporary, discard, put_in_place
from rvos_deploy.runtime.frame_masks import FrameMasks

SCHEMA = "rvos-deploy/run/1"
_BEGINNING = b'{"schema": "rvos-deploy/run/'


class ResultFile:
    """Collects frames; :meth:`close` completes the file and puts it in place under its name.

    Methods raise InputError when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames = 0
        with self._errors(), ExitStack() as undo:
            self._temporary = create_temporary(path)
            undo.callback(discard, self._temporary)
            self._file: IO[str] = self._temporary.open("w", encoding="utf-8")
            undo.callback(self._file.close)
            self._file.write(f'{{"schema": {json.dumps(SCHEMA)},\n"frames": [')
            undo.pop_all()

    def add(self, result: FrameMasks) -> None:
        """Append one frame."""
        entry = {
            "index": result.index,
            "pts": result.pts,
            "expressions": [
                describe_mask(mask, float(score))
                for mask, score in zip(result.masks, result.scores, strict=True)
            ],
        }
        line = ("," if self._frames else "") + "\n" + json.dumps(entry, allow_nan=False)
        with self._errors():
            self._file.write(line)
        self._frames += 1

    def close(self, rest: dict[str, Any]) -> None:
        """Complete the file with the other keys, and rename it into place."""
        tail = json.dumps(rest, indent=1, allow_nan=False)
        with self._errors():
            self._file.write("\n],\n" + tail.removeprefix("{").lstrip("\n") + "\n")
            self._file.close()
            put_in_place(self._temporary, self._path)

    def abort(self) -> None:
        """Remove the unfinished file; harmless after :meth:`close`. Raises nothing."""
        with suppress(OSError):  # closing writes what waits: on a full disk, that fails once more
            self._file.close()
        discard(self._temporary)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed, when a write failed before
            raise InputError(cannot_write(self._path, error)) from error


def is_result_file(path: Path) -> bool:
    """Whether a run wrote this file; also an empty one is nothing to be kept."""
    with path.open("rb") as file:
        start = file.read(len(_BEGINNING))
    return start in (b"", _BEGINNING)


def describe_mask(mask: NDArray[np.bool_], score: float) -> dict[str, Any]:
    """Score, area in pixels, and box [left, top, width, height] (null when the mask is empty)."""
    area = int(np.count_nonzero(mask))
    if not area:
        return {"score": round(score, 6), "area": 0, "box": None}
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {"score": round(score, 6), "area": area, "box": box}
