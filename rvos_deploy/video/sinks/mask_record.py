"""Describe masks in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.mask_box import mask_box


def describe_mask(mask: NDArray[np.bool_], score: float) -> dict[str, object]:
    """Return the score, the area in pixels, and the box [left, top, width, height] of a mask.

    The box of an empty mask is None.
    """
    box = mask_box(mask)
    area = int(np.count_nonzero(mask)) if box else 0
    return {"score": round(score, 6), "area": area, "box": list(box) if box else None}


def describe_frame(frame: Frame) -> dict[str, object]:
    """Return a frame's index, time in seconds, own name or None, and dropped frames before it."""
    return {
        "index": frame.index,
        "pts": frame.pts,
        "name": frame.name,
        "dropped": frame.dropped,
    }


def annotations_head(schema: str, info: VideoInfo, expressions: Sequence[str]) -> str:
    """Return the beginning of an annotation file, up to its open list of annotations.

    Category e + 1 is expression e, in the form that COCO and YouTube-VIS share.
    """
    categories = [
        {"id": number, "name": text, "supercategory": "expression"}
        for number, text in enumerate(expressions, start=1)
    ]
    return (
        f'{{"schema": {to_json(schema)},\n"info": {to_json({"description": info.name})},\n'
        f'"categories": {to_json(categories)},\n"annotations": ['
    )


def to_json(value: object) -> str:
    """Return a value as JSON in one line of ASCII."""
    return json.dumps(value, allow_nan=False)
