"""Read a device that FFmpeg opens: a camera or a screen."""

from __future__ import annotations

from functools import partial

from rvos_deploy.video.sources.address import is_kind, is_url
from rvos_deploy.video.sources.base import SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, read_container


def _input(request: SourceRequest) -> FFmpegInput:
    name = request.name
    format = request.format or ("v4l2" if name.startswith("/dev/video") else None)
    # An address for which the user names a demuxer counts as a device too.
    return FFmpegInput(name, "url" if is_url(name) else "local", format)


DEVICE = SourceType(is_kind("device"), partial(read_container, _input), live=True)
