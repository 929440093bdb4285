"""Keep the masks of a frame for every threshold, so that the threshold can change afterwards.

A mask unites the candidates whose score exceeds the threshold. So the masks for all thresholds are
the unions of the best one, two, three ... candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import upsample_masks
from rvos_deploy.rle import Rle, decode, encode
from rvos_deploy.runtime.decided_frame import DecidedFrame, Render

LEAST_THRESHOLD = 0.05
"""Candidates with a lower score are not kept."""
MOST_CANDIDATES = 8
"""Candidates of an expression that are kept: the best ones. It bounds the memory."""


@dataclass(frozen=True)
class Levels:
    """Hold the masks of one expression in one frame.

    Args:
        score: of the expression: that of its best candidate.
        scores: [L] scores of the best candidates that are kept, descending.
        masks: [L] masks; number n unites the best n + 1 candidates.
    """

    score: float
    scores: tuple[float, ...]
    masks: tuple[Rle, ...]

    def at(self, threshold: float) -> Rle | None:
        """Return the mask at a threshold of ``LEAST_THRESHOLD`` or more; None: it is empty."""
        passing = sum(score > threshold for score in self.scores)
        return self.masks[passing - 1] if passing else None


def masks_at(
    levels: tuple[Levels, ...], threshold: float, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return the masks of E expressions at a threshold: bool [E, *size]."""
    found = np.zeros((len(levels), *size), dtype=np.bool_)
    for mask, one in zip(found, levels, strict=True):
        if (rle := one.at(threshold)) is not None:
            mask[:] = decode(rle)
    return found


def levels_render(threshold: float, keep: Callable[[int, tuple[Levels, ...]], None]) -> Render:
    """Return a render that passes a frame's number and levels [E] to ``keep``.

    ``threshold``: of the masks that the stream's own results have.
    """

    def render(frame: DecidedFrame) -> NDArray[np.bool_]:
        ranked = -np.sort(-frame.scores, axis=1)  # [E,N]
        counts = np.minimum((ranked > LEAST_THRESHOLD).sum(axis=1), MOST_CANDIDATES)
        below = np.concatenate([ranked, np.full((len(ranked), 1), -1, ranked.dtype)], axis=1)
        kept: list[list[Rle]] = [[] for _ in ranked]
        for number in range(int(counts.max(initial=0))):
            # The candidates above the next lower score; none where an expression has no more.
            wanted = np.where(counts > number, below[:, number + 1], np.inf)
            masks = upsample_masks(frame.mask_logits(wanted.astype(np.float32)), frame.geometry)
            for row in np.flatnonzero(counts > number):
                kept[row].append(encode(masks[row]))
        levels = tuple(
            Levels(float(scores[0]), tuple(map(float, scores[:count])), tuple(rles))
            for scores, count, rles in zip(ranked, counts, kept, strict=True)
        )
        keep(frame.index, levels)
        return masks_at(levels, threshold, frame.geometry.display)

    return render
