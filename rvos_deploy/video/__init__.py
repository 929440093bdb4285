"""Read, draw and write video: PyAV, NumPy and Pillow, never torch.

Names are imported at their first use, because PyAV is slow to import and a stream of arrays needs
none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rvos_deploy.lazy_names import lazy_names

if TYPE_CHECKING:
    from rvos_deploy.video.drawing.montage import draw_montage, write_montage
    from rvos_deploy.video.drawing.overlay import draw_overlay
    from rvos_deploy.video.frames import Frame, VideoInfo
    from rvos_deploy.video.reader import VideoReader, open_video, read_video
    from rvos_deploy.video.sinks.masks import MaskWriter
    from rvos_deploy.video.sinks.video_file import VideoWriter
    from rvos_deploy.video.sources.base import Source
    from rvos_deploy.video.sources.options import SourceOptions

__all__ = [
    "Frame",
    "MaskWriter",
    "Source",
    "SourceOptions",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "draw_montage",
    "draw_overlay",
    "open_video",
    "read_video",
    "write_montage",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Frame": "rvos_deploy.video.frames",
        "MaskWriter": "rvos_deploy.video.sinks.masks",
        "Source": "rvos_deploy.video.sources.base",
        "SourceOptions": "rvos_deploy.video.sources.options",
        "VideoInfo": "rvos_deploy.video.frames",
        "VideoReader": "rvos_deploy.video.reader",
        "VideoWriter": "rvos_deploy.video.sinks.video_file",
        "draw_montage": "rvos_deploy.video.drawing.montage",
        "draw_overlay": "rvos_deploy.video.drawing.overlay",
        "open_video": "rvos_deploy.video.reader",
        "read_video": "rvos_deploy.video.reader",
        "write_montage": "rvos_deploy.video.drawing.montage",
    },
)
