"""Deploy referring video object segmentation, from PyTorch to production.

``import rvos_deploy as rvos`` is cheap: the names below are imported at their first use, and none
of them imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rvos_deploy.lazy_names import lazy_names

if TYPE_CHECKING:
    from rvos_deploy.errors import BackendError, BundleError, InputError, RvosError, VideoError
    from rvos_deploy.runtime.frame_masks import FrameMasks
    from rvos_deploy.runtime.run import RunOptions, RunReport, run
    from rvos_deploy.runtime.segmenter import Segmenter, load
    from rvos_deploy.runtime.stream import Stream
    from rvos_deploy.stream_settings import StreamSettings
    from rvos_deploy.video.frames import Frame, VideoInfo, bgr_to_rgb
    from rvos_deploy.video.reader import VideoReader, open_video, read_video
    from rvos_deploy.video.sinks.base import Sink
    from rvos_deploy.video.sources.base import Source
    from rvos_deploy.video.sources.options import SourceOptions

__all__ = [
    "BackendError",
    "BundleError",
    "Frame",
    "FrameMasks",
    "InputError",
    "RunOptions",
    "RunReport",
    "RvosError",
    "Segmenter",
    "Sink",
    "Source",
    "SourceOptions",
    "Stream",
    "StreamSettings",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "bgr_to_rgb",
    "load",
    "open_video",
    "read_video",
    "run",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BackendError": "rvos_deploy.errors",
        "BundleError": "rvos_deploy.errors",
        "Frame": "rvos_deploy.video.frames",
        "FrameMasks": "rvos_deploy.runtime.frame_masks",
        "InputError": "rvos_deploy.errors",
        "RunOptions": "rvos_deploy.runtime.run",
        "RunReport": "rvos_deploy.runtime.run",
        "RvosError": "rvos_deploy.errors",
        "Segmenter": "rvos_deploy.runtime.segmenter",
        "Sink": "rvos_deploy.video.sinks.base",
        "Source": "rvos_deploy.video.sources.base",
        "SourceOptions": "rvos_deploy.video.sources.options",
        "Stream": "rvos_deploy.runtime.stream",
        "StreamSettings": "rvos_deploy.stream_settings",
        "VideoError": "rvos_deploy.errors",
        "VideoInfo": "rvos_deploy.video.frames",
        "VideoReader": "rvos_deploy.video.reader",
        "bgr_to_rgb": "rvos_deploy.video.frames",
        "load": "rvos_deploy.runtime.segmenter",
        "open_video": "rvos_deploy.video.reader",
        "read_video": "rvos_deploy.video.reader",
        "run": "rvos_deploy.runtime.run",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
