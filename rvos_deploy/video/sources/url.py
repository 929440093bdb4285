"""A network address that FFmpeg opens."""

from __future__ import annotations

from collections.abc import Generator

from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.address import ffmpeg_url, kind_of
from rvos_deploy.video.sources.base import Opened, SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, read_container
from rvos_deploy.video.sources.decode_errors import DecodeErrors


def _matches(name: str, format: str | None) -> bool:
    return kind_of(name, format) == "url"


def _read(request: SourceRequest, errors: DecodeErrors) -> Generator[Opened | Frame, None, None]:
    source = FFmpegInput(ffmpeg_url(request.name), "url", request.format)
    yield from read_container(request, source, errors)


URL = SourceType(_matches, _read, live=True, network=True)
