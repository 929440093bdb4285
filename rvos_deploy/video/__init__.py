"""Read, draw and write video: PyAV, NumPy and Pillow, never torch."""

from rvos_deploy.video.drawing.montage import draw_montage, write_montage
from rvos_deploy.video.drawing.overlay import draw_overlay
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.reader import VideoReader, open_video, read_video
from rvos_deploy.video.sinks.masks import MaskWriter
from rvos_deploy.video.sinks.mp4 import Mp4Writer
from rvos_deploy.video.sources.base import SourceOptions

__all__ = [
    "Frame",
    "MaskWriter",
    "Mp4Writer",
    "SourceOptions",
    "VideoInfo",
    "VideoReader",
    "draw_montage",
    "draw_overlay",
    "open_video",
    "read_video",
    "write_montage",
]
