"""Deploy referring video object segmentation, from PyTorch to production.

``import rvos_deploy as rvos`` is cheap: the names below are imported at their first use, and none
of them imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "Frame": "rvos_deploy.video",
    "FrameMasks": "rvos_deploy.runtime.frame_masks",
    "RvosError": "rvos_deploy.errors",
    "Segmenter": "rvos_deploy.runtime.segmenter",
    "Stream": "rvos_deploy.runtime.stream",
    "StreamSettings": "rvos_deploy.stream_settings",
    "load": "rvos_deploy.runtime.segmenter",
    "open_video": "rvos_deploy.video",
    "read_video": "rvos_deploy.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rvos_deploy' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
