"""Read a file: a video, a GIF, an animation, pages, or a single picture."""

from __future__ import annotations

from pathlib import Path

from rvos_deploy.errors import VideoError
from rvos_deploy.images import count_pictures
from rvos_deploy.video.sources import pages
from rvos_deploy.video.sources.address import ffmpeg_path, has_path, is_kind
from rvos_deploy.video.sources.base import OpenedSource, SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, open_container
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.folder import SUFFIXES, open_images


def open_file(request: SourceRequest, errors: DecodeErrors) -> OpenedSource:
    """Open a file of any of these kinds, as a ``SourceType`` requires."""
    path = Path(request.name)
    # The suffix decides first, because a video of joined JPEGs begins like a picture.
    if path.suffix.lower() in SUFFIXES and (pictures := count_pictures(path)):
        if pictures == 1:
            return open_images(request, {path.name: path}, errors)
        if path.suffix.lower() in pages.SUFFIXES:
            return pages.open_pages(request, pictures, errors)
    if has_path(request.name) and path.stat().st_size == 0:
        raise VideoError(
            f"{request.name} is empty (0 bytes); a video is needed: copy or record it again"
        )
    return open_container(_input, request, errors)


def _input(request: SourceRequest) -> FFmpegInput:
    return FFmpegInput(ffmpeg_path(request.name), "local", request.format)


FILE = SourceType(is_kind("file"), open_file)
