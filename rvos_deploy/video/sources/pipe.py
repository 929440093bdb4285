"""A pipe: standard input, a FIFO, or an open file by its number."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any, cast

from rvos_deploy.errors import VideoError
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.address import STANDARD_INPUT, ffmpeg_path, kind_of
from rvos_deploy.video.sources.base import Opened, SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, read_container
from rvos_deploy.video.sources.decode_errors import DecodeErrors


class _StandardInput:
    """Standard input, read as it arrives: a plain read() would wait to fill a buffer.

    Unbuffered where it can be: the thread that waits here may be left behind, and a buffer's lock
    that such a thread holds makes the interpreter abort at its end.
    """

    def __init__(self, stream: Any) -> None:
        self._read = stream.raw.read if hasattr(stream, "raw") else stream.read1

    def read(self, size: int) -> bytes:
        return cast(bytes, self._read(size) or b"")


def _matches(name: str, format: str | None) -> bool:
    return kind_of(name, format) == "pipe"


def _read(request: SourceRequest, errors: DecodeErrors) -> Generator[Opened | Frame, None, None]:
    yield from read_container(request, _input(request), errors)


def _input(request: SourceRequest) -> FFmpegInput:
    if request.name != STANDARD_INPUT:
        return FFmpegInput(ffmpeg_path(request.name), "local", request.format)
    if sys.stdin is None or sys.stdin.isatty():
        raise VideoError("nothing is piped into standard input; use `... < VIDEO`, or a file name")
    return FFmpegInput(_StandardInput(sys.stdin.buffer), "pipe", request.format)


PIPE = SourceType(_matches, _read, live=True)
