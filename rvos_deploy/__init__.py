"""Deploy referring video object segmentation, from PyTorch to production.

``import rvos_deploy as rvos`` is cheap: the names below are imported at their first use, and none
of them imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rvos_deploy.lazy_names import lazy_names

if TYPE_CHECKING:
    from rvos_deploy.errors import RvosError
    from rvos_deploy.runtime.frame_masks import FrameMasks
    from rvos_deploy.runtime.segmenter import Segmenter, load
    from rvos_deploy.runtime.stream import Stream
    from rvos_deploy.stream_settings import StreamSettings
    from rvos_deploy.video import Frame, open_video, read_video

__all__ = [
    "Frame",
    "FrameMasks",
    "RvosError",
    "Segmenter",
    "Stream",
    "StreamSettings",
    "load",
    "open_video",
    "read_video",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Frame": "rvos_deploy.video.frames",
        "FrameMasks": "rvos_deploy.runtime.frame_masks",
        "RvosError": "rvos_deploy.errors",
        "Segmenter": "rvos_deploy.runtime.segmenter",
        "Stream": "rvos_deploy.runtime.stream",
        "StreamSettings": "rvos_deploy.stream_settings",
        "load": "rvos_deploy.runtime.segmenter",
        "open_video": "rvos_deploy.video.reader",
        "read_video": "rvos_deploy.video.reader",
    },
)
