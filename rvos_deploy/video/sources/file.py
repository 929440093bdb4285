"""Read a file: a video, a GIF, or a single picture."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from rvos_deploy.errors import VideoError
from rvos_deploy.images import is_still
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.address import ffmpeg_path, has_path, is_kind
from rvos_deploy.video.sources.base import Opened, SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, read_container
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.folder import SUFFIXES, read_images


def _read(request: SourceRequest, errors: DecodeErrors) -> Generator[Opened | Frame, None, None]:
    path = Path(request.name)
    # The suffix decides first, because a video of joined JPEGs begins like a picture.
    if path.suffix.lower() in SUFFIXES and is_still(path):
        yield from read_images(request, [path], errors)
        return
    if has_path(request.name) and path.stat().st_size == 0:
        raise VideoError(
            f"{request.name} is empty (0 bytes); a video is needed: copy or record it again"
        )
    yield from read_container(_input, request, errors)


def _input(request: SourceRequest) -> FFmpegInput:
    return FFmpegInput(ffmpeg_path(request.name), "local", request.format)


FILE = SourceType(is_kind("file"), _read)
