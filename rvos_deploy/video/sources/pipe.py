"""Read a pipe: standard input, a FIFO, or an open file descriptor."""

from __future__ import annotations

import sys
from functools import partial
from io import BufferedReader
from typing import cast

from rvos_deploy.errors import VideoError
from rvos_deploy.video.sources.address import STANDARD_INPUT, ffmpeg_path, is_kind
from rvos_deploy.video.sources.base import SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, open_container


class _StandardInput:
    """Read standard input as it arrives, because a plain read() waits until its buffer is full.

    Reading is unbuffered where possible: the waiting thread may be abandoned, and the interpreter
    aborts at exit if an abandoned thread holds a buffer's lock.
    """

    def __init__(self, stream: BufferedReader) -> None:
        self._read = stream.raw.read if hasattr(stream, "raw") else stream.read1

    def read(self, size: int) -> bytes:
        return self._read(size) or b""


def standard_input() -> _StandardInput:
    """Return standard input as a readable object. Raises VideoError: nothing is piped into it."""
    if sys.stdin is None or sys.stdin.isatty():
        raise VideoError("nothing is piped into standard input; use `... < VIDEO`, or a file name")
    return _StandardInput(cast(BufferedReader, sys.stdin.buffer))


def _input(request: SourceRequest) -> FFmpegInput:
    if request.name != STANDARD_INPUT:
        return FFmpegInput(ffmpeg_path(request.name), "local", request.format)
    return FFmpegInput(standard_input(), "pipe", request.format)


PIPE = SourceType(is_kind("pipe"), partial(open_container, _input), live=True)
