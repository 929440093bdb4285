"""Read a device that FFmpeg opens: a camera, by its number or name, or a screen."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from rvos_deploy.errors import VideoError
from rvos_deploy.video.sources.address import camera_number, is_kind, is_url
from rvos_deploy.video.sources.base import SourceRequest, SourceType
from rvos_deploy.video.sources.container import FFmpegInput, open_container

_CAMERA = "/dev/video"


def _input(request: SourceRequest) -> FFmpegInput:
    name, number = request.name, camera_number(request.name)
    if number is not None and request.format is None:
        return _camera(number)
    format = request.format or ("v4l2" if name.startswith(_CAMERA) else None)
    # An address for which the user names a demuxer counts as a device too.
    return FFmpegInput(name, "url" if is_url(name) else "local", format)


def _camera(number: int) -> FFmpegInput:
    """Describe camera ``number``. Raises VideoError: there is none, or they have no numbers."""
    if sys.platform == "darwin":
        return FFmpegInput(str(number), "local", "avfoundation")
    if sys.platform != "linux":
        raise VideoError(
            f"camera {number} cannot be opened by its number on this system; pipe its video in: "
            "ffmpeg -f dshow -i video=NAME -f mpegts - | rvos-deploy run - ..."
        )
    path = Path(f"{_CAMERA}{number}")
    if not path.exists():
        devices = sorted(path.parent.glob(f"{path.name.rstrip('0123456789')}*"))
        here = ", ".join(map(str, devices)) or "none"
        raise VideoError(
            f"there is no camera {number} ({path}); cameras here: {here}; a file of that name is "
            f"./{number}"
        )
    return FFmpegInput(str(path), "local", "v4l2")


DEVICE = SourceType(is_kind("device"), partial(open_container, _input), live=True)
