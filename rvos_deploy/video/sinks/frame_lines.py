"""Write a line of JSON for each frame: ``frames.ndjson``, or standard output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.files import cannot_write
from rvos_deploy.rle import encode
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameNames, FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.mask_record import describe_frame, describe_mask, to_json
from rvos_deploy.video.sinks.registry import STANDARD_OUTPUT
from rvos_deploy.video.sinks.standard_output import StandardOutput

FRAME_LINES = "frames.ndjson"
"""Name of a run's lines."""
SCHEMA = "rvos-deploy/frame/1"
Texts: TypeAlias = Sequence[str] | Mapping[int, str]


def frame_line(result: FrameResult, texts: Texts, file: str) -> bytes:
    """Describe one frame in a line of JSON, which ends with a line break.

    Args:
        result: the frame's result; its masks are waited for.
        texts: texts of the expressions by number.
        file: name of the frame's files, without suffix.
    """
    rows = zip(result.expressions, result.masks, result.scores, strict=True)
    entry = {
        "schema": SCHEMA,
        **describe_frame(result.frame),
        "file": file,
        "expressions": [
            {
                "expression": number,
                "text": texts[number],
                **describe_mask(mask, float(score)),
                "rle": encode(mask),
            }
            for number, mask, score in rows
        ],
    }
    return to_json(entry).encode() + b"\n"


class LineSink(Sink):
    """Describe each frame in one line; a kind says where the line goes (``commit``)."""

    needs_images = False

    def __init__(self, names: FrameNames) -> None:
        self._names = names
        self._expressions: Sequence[str] = ()
        self._line = b""

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Keep the texts."""
        self._expressions = expressions

    def write(self, result: FrameResult) -> None:
        """Describe one frame."""
        self._line = frame_line(result, self._expressions, self._names.of(result.frame))


class FrameLineSink(LineSink):
    """Append a whole line to the file for each frame, so that other programs can follow it.

    The file appears with the first frame, after the files of an earlier run are out of the way.
    """

    def __init__(self, path: Path, names: FrameNames) -> None:
        super().__init__(names)
        self._path = path
        self._file: int | None = None
        self._length = 0
        self._start: int | None = None  # of the line that may be withdrawn

    def write(self, result: FrameResult) -> None:
        """Describe one frame."""
        self._start = None
        super().write(result)

    def commit(self) -> None:
        """Append the line. Raises VideoError: the file cannot be written."""
        self._start = self._length
        try:
            if self._file is None:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
                self._file = os.open(self._path, flags, 0o666)
            rest = memoryview(self._line)
            while rest:  # an almost full disk takes a part
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise VideoError(cannot_write(self._path, error)) from error
        self._length += len(self._line)

    def rollback(self) -> None:
        """Cut the line off again; remove a file without a line."""
        start, self._start = self._start, None
        if start is None or self._file is None:
            return
        self._length = start
        with suppress(OSError):
            os.ftruncate(self._file, start)
            if not start:
                self._path.unlink()
        if not start:
            self.abort()

    def finish(self) -> None:
        """Close the file; a run without a frame has an empty one. Raises InputError."""
        try:
            if self._file is None:
                self._path.touch()
        except OSError as error:
            raise InputError(cannot_write(self._path, error)) from error
        self.abort()

    def abort(self) -> None:
        """Close the file, which holds whole lines only."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def describe(self) -> dict[str, object]:
        """Return the name of the file."""
        return {"rle": {"files": FRAME_LINES}}


class PrintedLineSink(LineSink):
    """Print a line to standard output for each frame."""

    irrevocable = True

    def __init__(self, names: FrameNames) -> None:
        super().__init__(names)
        self._output = StandardOutput()

    def commit(self) -> None:
        """Print the line. Raises VideoError: nobody reads it anymore."""
        self._output.write(self._line)

    def describe(self) -> dict[str, object]:
        """Return the name that FFmpeg and shells give to standard output."""
        return {"rle": {"files": STANDARD_OUTPUT}}


def make(request: SinkRequest) -> Sink:
    """Make the sink of a run. Raises InputError: the target is not ``-``."""
    if request.target is None:
        return FrameLineSink(request.out / FRAME_LINES, request.names)
    if request.target != STANDARD_OUTPUT:
        raise InputError(
            f"lines of JSON go to {FRAME_LINES} (rle) or to standard output (rle=-), found "
            f"rle={request.target}"
        )
    return PrintedLineSink(request.names)
