"""Detect from the ground truth of a split whether its layout is MeViS's or Ref-YouTube-VOS's."""

from __future__ import annotations

import os
from typing import Literal

from rvos_deploy.datasets.entries import read_json
from rvos_deploy.datasets.layout import find_split

Layout = Literal["mevis", "ref-youtube-vos"]


def find_layout(data: str | os.PathLike[str]) -> Layout | None:
    """Return the layout of a split: MeViS lists an expression's objects, Ref-YouTube-VOS has one.

    Args:
        data: the split, as for :func:`rvos_deploy.datasets.layout.find_split`.

    Returns:
        The layout, or None for a split that is published without ground truth.

    Raises:
        InputError: the split is not found, or its list of expressions is malformed.
    """
    for _, video in read_json(find_split(data).meta).get("videos").items():
        for _, expression in video.get("expressions").items():
            if expression.has("anno_id"):
                return "mevis"
            if expression.has("obj_id"):
                listed = isinstance(expression.get("obj_id").value, list)
                return "mevis" if listed else "ref-youtube-vos"
    return None
