"""A device that FFmpeg opens: a camera, a screen."""

from __future__ import annotations

from collections.abc import Generator

from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.address import is_url, kind_of
from rvos_deploy.video.sources.base import Opened, SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, read_container
from rvos_deploy.video.sources.decode_errors import DecodeErrors


def _matches(name: str, format: str | None) -> bool:
    return kind_of(name, format) == "device"


def _read(request: SourceRequest, errors: DecodeErrors) -> Generator[Opened | Frame, None, None]:
    name = request.name
    format = request.format or ("v4l2" if name.startswith("/dev/video") else None)
    # An address whose demuxer the user names is a device here too.
    source = FFmpegInput(name, "url" if is_url(name) else "local", format)
    yield from read_container(request, source, errors)


DEVICE = SourceType(_matches, _read, live=True)
