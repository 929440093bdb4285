"""Slot alignment and the running weighted mean: the network's arithmetic between graphs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float32]


def assign_slots(previous: Array, current: Array) -> NDArray[np.int64]:
    """Index into ``current`` of the query that takes each slot of ``previous``.

    Optimal assignment on 1 - cosine; a cosine that is not a number (zero or non-finite vectors)
    costs 1. Computed in float64, and deterministic for ties.

    Args:
        previous: [N,C] aligned queries of the last frame.
        current: [N,C] queries of this frame, in any order.

    Returns:
        permutation [N]: ``current[permutation]`` is aligned with ``previous``. (The assignment
        solver's columns are exactly that; its inverse is a published mistake that a swap hides.)
    """
    with np.errstate(all="ignore"):
        cosine = _unit(previous) @ _unit(current).T
    cost = np.where(np.isfinite(cosine), 1.0 - cosine, 1.0)
    _, columns = linear_sum_assignment(cost)
    return np.asarray(columns, dtype=np.int64)


def _unit(vectors: Array) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    return unit


@dataclass
class OnlineSoftmax:
    """Softmax-weighted mean over frames, a frame at a time, in constant memory.

    Keeps the running maximum, the sum of exponentials and the weighted sum (Milakov and
    Gimelshein 2018), in float64 so that a long stream does not drift.
    """

    _maximum: NDArray[np.float64] | None = field(default=None, init=False)
    _total: NDArray[np.float64] = field(init=False)
    _weighted: NDArray[np.float64] = field(init=False)

    def update(self, values: Array, logits: Array) -> None:
        """Take one frame: values [N,C], logits [N]."""
        wide = logits.astype(np.float64)
        if self._maximum is None:
            self._maximum = wide
            self._total = np.ones_like(wide)
            self._weighted = values.astype(np.float64)
            return
        maximum = np.maximum(self._maximum, wide)
        keep, weight = np.exp(self._maximum - maximum), np.exp(wide - maximum)
        self._maximum = maximum
        self._total = self._total * keep + weight
        self._weighted = self._weighted * keep[:, None] + values * weight[:, None]

    def mean(self) -> Array:
        """The weighted mean so far: float32 [N,C]."""
        return (self._weighted / self._total[:, None]).astype(np.float32)
