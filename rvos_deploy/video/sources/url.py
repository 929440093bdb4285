"""Read a network address that FFmpeg opens."""

from __future__ import annotations

from functools import partial

from rvos_deploy.video.sources.address import ffmpeg_url, is_kind
from rvos_deploy.video.sources.base import SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, read_container


def _input(request: SourceRequest) -> FFmpegInput:
    return FFmpegInput(ffmpeg_url(request.name), "url", request.format)


URL = SourceType(is_kind("url"), partial(read_container, _input), live=True, network=True)
