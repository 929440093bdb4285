"""Assign pixels that several objects of one prediction claim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import upsample_all_logits
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.runtime.decided_frame import DecidedFrame, Render
from rvos_deploy.stream_settings import Fallback

Groups = Sequence[Sequence[int]]
"""Rows of the expressions that form one multi-object prediction, for each such prediction."""


def resolve_overlaps(logits: NDArray[np.float32], groups: Groups) -> NDArray[np.bool_]:
    """Assign each pixel of a multi-object prediction to the object with the greatest mask logit.

    A pixel without a logit above 0 is background. Of equal logits, the first row's wins.

    Args:
        logits: float32 [E,H,W] at the displayed size.
        groups: rows that share pixels; a row outside all groups keeps all its pixels.

    Returns:
        Masks bool [E,H,W].
    """
    masks: NDArray[np.bool_] = logits > 0
    for group in groups:
        rows = np.asarray(group, dtype=np.intp)
        above = np.where(masks[rows], logits[rows], 0)
        masks[rows] &= above.argmax(axis=0) == np.arange(len(rows))[:, None, None]
    return masks


def argmax_masks(threshold: float, fallback: Fallback, groups: Groups) -> Render:
    """Return a render of masks bool [E,H,W] without overlaps in a group (see ``Stream``)."""

    def render(frame: DecidedFrame) -> NDArray[np.bool_]:
        passing = thresholds(frame.scores, threshold, fallback)
        logits = frame.mask_logits(passing)
        return resolve_overlaps(upsample_all_logits(logits, frame.geometry), groups)

    return render
