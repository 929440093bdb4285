"""Reading, drawing and writing video: PyAV, NumPy and Pillow, never torch."""

from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.montage import draw_strips, write_strips
from rvos_deploy.video.overlay import draw_overlay
from rvos_deploy.video.reader import VideoReader, open_video, read_video
from rvos_deploy.video.writer import MaskWriter, OverlayWriter

__all__ = [
    "Frame",
    "MaskWriter",
    "OverlayWriter",
    "VideoInfo",
    "VideoReader",
    "draw_overlay",
    "draw_strips",
    "open_video",
    "read_video",
    "write_strips",
]
