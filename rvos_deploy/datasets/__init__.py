"""Read MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and Moving Sprites, without importing torch.

All readers return the same records. A video has frames, expressions, and masks, which are read on
demand::

    split = read_mevis("mevis/valid_u")
    for video in split.videos:
        for expression in video.expressions:
            masks = video.union_masks(expression)  # bool [T, H, W]
"""

from __future__ import annotations

from rvos_deploy.datasets.annotations import PaletteAnnotation, RleAnnotation
from rvos_deploy.datasets.detection import find_layout
from rvos_deploy.datasets.mevis import read_mevis
from rvos_deploy.datasets.records import (
    Annotation,
    DataSplit,
    ExpressionRecord,
    VideoRecord,
)
from rvos_deploy.datasets.youtube_vos import read_ref_davis, read_ref_youtube_vos

__all__ = [
    "Annotation",
    "DataSplit",
    "ExpressionRecord",
    "PaletteAnnotation",
    "RleAnnotation",
    "VideoRecord",
    "find_layout",
    "read_mevis",
    "read_ref_davis",
    "read_ref_youtube_vos",
]
