"""Read a network address that FFmpeg opens."""

from __future__ import annotations

from functools import partial

from rvos_deploy.video.sources.address import ffmpeg_url, is_kind
from rvos_deploy.video.sources.base import SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, open_container
from rvos_deploy.video.sources.reconnect import open_reconnecting


def _input(request: SourceRequest) -> FFmpegInput:
    address = ffmpeg_url(request.name)
    # Over UDP, FFmpeg's default, a lost packet damages the pictures to the next key frame.
    options = {"rtsp_flags": "prefer_tcp"} if address.startswith("rtsp:") else {}
    return FFmpegInput(address, "url", request.format, options)


URL = SourceType(
    is_kind("url"),
    partial(open_reconnecting, partial(open_container, _input)),
    live=True,
    network=True,
)
