"""Compute region similarity J and contour accuracy F of masks, as DAVIS and MeViS define them.

The measures are those of Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation" (CVPR 2016), in the form of the DAVIS evaluation code. The results equal those
of the published code to the last bit, but the algorithm differs (see packed.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.evaluation import packed

DAVIS_BOUND = 0.008
"""Tolerance of F that DAVIS and MeViS use, as a fraction of the image diagonal."""


@dataclass(frozen=True, eq=False)
class FrameScores:
    """Hold J and F of each frame of one sequence: float64 [T], 0..1."""

    j: NDArray[np.float64]
    f: NDArray[np.float64]

    @property
    def j_mean(self) -> float:
        """Return the mean J over the frames."""
        return float(self.j.mean())

    @property
    def f_mean(self) -> float:
        """Return the mean F over the frames."""
        return float(self.f.mean())

    @property
    def j_and_f(self) -> float:
        """Return J&F of the sequence: (mean J + mean F) / 2."""
        return (self.j_mean + self.f_mean) / 2


def region_similarity(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return J of one frame: intersection over union, and 1 when both masks are empty.

    Masks are bool or integer [H, W]; any non-zero value is foreground. Source: Perazzi et al., CVPR
    2016, section 4. Raises InputError: the sizes differ.
    """
    _check(prediction, truth, "[H, W]")
    return _jaccard(_pack_pair(prediction, truth))


def contour_accuracy(
    prediction: NDArray[Any], truth: NDArray[Any], *, bound: float = DAVIS_BOUND
) -> float:
    """Return F of one frame: the harmonic mean of precision and recall of the 1-pixel boundaries.

    A boundary pixel matches if the other mask has a boundary pixel within a disk. The disk's radius
    is ceil(bound * image diagonal) pixels, or ``bound`` itself if that is 1 or more. If both
    boundaries are empty, F is 1; if exactly one is empty, F is 0. The image's border is not a
    boundary, so a mask of the whole image has none: against an empty mask F = 1 (and J = 0), as in
    DAVIS.

    Masks are bool or integer [H, W]; any non-zero value is foreground. Source: Perazzi et al., CVPR
    2016, section 4, with the dilation of the DAVIS code in place of bipartite matching.

    Raises InputError: the sizes differ, or ``bound`` is negative, or is 1 or more but not whole.
    """
    height, width = _check(prediction, truth, "[H, W]")
    radius = _radius(height, width, bound)
    return _contour(_pack_pair(prediction, truth), width, radius)


def frame_scores(
    predictions: NDArray[Any], truths: NDArray[Any], *, bound: float = DAVIS_BOUND
) -> FrameScores:
    """Return J and F of every frame of a sequence (see benchmarks/metrics.py for the speed).

    Masks are bool or integer [T, H, W]; any non-zero value is foreground. Every frame counts, as in
    MeViS. DAVIS omits the first and the last frame: pass ``[1:-1]`` for it. ``bound``, the
    definitions and their sources are those of region_similarity and contour_accuracy.

    Raises InputError: the sizes differ, or the sequence has no frame.
    """
    height, width = _check(predictions, truths, "[T, H, W]")
    radius = _radius(height, width, bound)
    scores = np.empty((2, len(truths)))
    # One frame at a time, so that its words stay in the cache and are cropped to its own objects.
    for index, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
        bits = _pack_pair(prediction, truth)
        scores[:, index] = _jaccard(bits), _contour(bits, width, radius)
    return FrameScores(j=scores[0], f=scores[1])


def _pack_pair(prediction: NDArray[Any], truth: NDArray[Any]) -> packed.Words:
    return np.stack([packed.pack(prediction), packed.pack(truth)])


def _jaccard(bits: packed.Words) -> float:
    union = packed.count(bits[0] | bits[1])
    return packed.count(bits[0] & bits[1]) / union if union else 1.0


def _contour(bits: packed.Words, width: int, radius: int) -> float:
    if np.array_equal(bits[0], bits[1]):
        return 1.0
    edges = packed.boundaries(bits, width)
    predicted, true = packed.count(edges[0]), packed.count(edges[1])
    if not predicted or not true:
        return float(predicted == true)
    edges = packed.crop(edges)
    reached = edges & packed.dilate(edges, radius)[::-1]
    precision = packed.count(reached[0]) / predicted
    recall = packed.count(reached[1]) / true
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def _radius(height: int, width: int, bound: float) -> int:
    if not (0 <= bound < 1 or (1 <= bound < math.inf and bound == int(bound))):
        raise InputError(
            f"bound is {bound}; pass a fraction of the image diagonal from 0 up to 1 (DAVIS: "
            f"{DAVIS_BOUND}), or a whole number of pixels"
        )
    if bound >= 1:
        return int(bound)
    return math.ceil(bound * math.sqrt(height * height + width * width))


def _check(predictions: NDArray[Any], truths: NDArray[Any], axes: str) -> tuple[int, int]:
    """Return height and width of the masks. Raises InputError: types, shapes or sizes differ."""
    for name, masks in (("prediction", predictions), ("truth", truths)):
        if masks.dtype != np.bool_ and not np.issubdtype(masks.dtype, np.integer):
            raise InputError(
                f"{name} is {masks.dtype}; pass masks as bool or uint8, for example mask > 0.5"
            )
        if masks.ndim != axes.count(",") + 1 or masks.size == 0:
            raise InputError(
                f"{name} has shape {_size(masks)}; pass {axes} with at least one frame and pixel"
            )
    if predictions.shape != truths.shape:
        raise InputError(
            f"prediction is {_size(predictions)} but truth is {_size(truths)} ({axes}); bring the "
            "prediction to the size of the truth, frame for frame, with nearest-neighbour resizing"
        )
    height, width = truths.shape[-2:]
    return height, width


def _size(masks: NDArray[Any]) -> str:
    return "x".join(map(str, masks.shape)) or "()"
