"""Write ``result.json`` frame by frame, so that a long video needs no memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, create_temporary, discard, put_in_place
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink

RESULT = "result.json"
"""Name of a run's result."""
SCHEMA = "rvos-deploy/run/1"
_BEGINNING = b'{"schema": "rvos-deploy/run/'


class ResultFileSink(Sink):
    """Write frames to a temporary file; :meth:`finish` completes it and renames it into place.

    Methods raise InputError if the file cannot be written.
    """

    needs_images = False

    def __init__(self, path: Path, summary: Callable[[], dict[str, object]]) -> None:
        """Prepare the sink; ``summary`` returns the other keys, when the file is completed."""
        self._path = path
        self._summary = summary
        self._line = ""
        self._frames = 0
        self._temporary: Path | None = None
        self._file: IO[str] | None = None

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Begin the file under a temporary name."""
        with self._errors(), ExitStack() as undo:
            temporary = create_temporary(self._path)
            undo.callback(discard, temporary)
            file = undo.enter_context(temporary.open("w", encoding="utf-8"))
            file.write(f'{{"schema": {json.dumps(SCHEMA)},\n"frames": [')
            self._temporary, self._file = temporary, file
            undo.pop_all()

    def write(self, result: FrameResult) -> None:
        """Describe one frame."""
        entry = {
            "index": result.frame.index,
            "pts": result.frame.pts,
            "dropped": result.frame.dropped,
            "expressions": [
                describe_mask(mask, float(score))
                for mask, score in zip(result.masks, result.scores, strict=True)
            ],
        }
        self._line = json.dumps(entry, allow_nan=False)

    def commit(self) -> None:
        """Append the frame."""
        assert self._file is not None, "open the sink first"
        with self._errors():
            self._file.write(("," if self._frames else "") + "\n" + self._line)
        self._frames += 1

    def finish(self) -> None:
        """Complete the file with the summary, and rename it into place."""
        assert self._file is not None, "open the sink first"
        assert self._temporary is not None
        tail = json.dumps(self._summary(), indent=1, allow_nan=False)
        with self._errors():
            self._file.write("\n],\n" + tail.removeprefix("{").lstrip("\n") + "\n")
            self._file.close()
            put_in_place(self._temporary, self._path)

    def abort(self) -> None:
        """Remove the unfinished file; do nothing after :meth:`finish`. Raises nothing."""
        if self._file is None or self._temporary is None:
            return
        with suppress(OSError):  # closing flushes the buffer, which fails again on a full disk
            self._file.close()
        discard(self._temporary)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed after an earlier failed write
            raise InputError(cannot_write(self._path, error)) from error


def is_result_file(path: Path) -> bool:
    """Tell whether a run wrote this file; an empty file counts, since it holds nothing to keep."""
    with path.open("rb") as file:
        start = file.read(len(_BEGINNING))
    return start in (b"", _BEGINNING)


def describe_mask(mask: NDArray[np.bool_], score: float) -> dict[str, object]:
    """Return the score, the area in pixels, and the box [left, top, width, height] of a mask.

    The box of an empty mask is None.
    """
    area = int(np.count_nonzero(mask))
    if not area:
        return {"score": round(score, 6), "area": 0, "box": None}
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {"score": round(score, 6), "area": area, "box": box}
