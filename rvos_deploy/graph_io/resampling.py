"""Compute the weights of Pillow's bilinear resizing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIXED_BITS = 22
"""Pillow's PRECISION_BITS: it sums bytes in integers."""


@dataclass(frozen=True)
class AxisWeights:
    """Hold the weighted sum that makes each position of one axis.

    Args:
        first: int32 [size], the first source position.
        count: int32 [size], the number of source positions, at least 1.
        weights: [size, K], weights of the source positions: float64, or int32 in units of
            2**-``FIXED_BITS``. Weights beyond ``count`` are 0.
    """

    first: NDArray[np.int32]
    count: NDArray[np.int32]
    weights: NDArray[np.float64] | NDArray[np.int32]


def bilinear_weights(source: int, end: float, size: int) -> AxisWeights:
    """Return the weights that resize positions 0 to ``end`` of ``source`` positions to ``size``.

    The numbers equal those of Pillow's ``Image.resize`` with ``BILINEAR`` (precompute_coeffs in its
    Resample.c), bit by bit. The triangle filter is one source position wide when the axis grows.
    When the axis shrinks, the filter is as wide as the scale, so every source position contributes.
    """
    if source == size and end == size:
        return _identity(size)
    scale = end / size
    support = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    # Toward zero and then up to 0, as in C.
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), source) - first
    offset = np.arange(int(count.max()))
    distance = (first[:, None] + offset - centre[:, None] + 0.5) * (1.0 / support)
    weights = np.maximum(1.0 - np.abs(distance), 0.0)
    weights[offset >= count[:, None]] = 0.0
    # Pillow sums one by one; a pairwise sum would round differently.
    total = np.add.accumulate(weights, axis=1)[:, -1:]
    return AxisWeights(first.astype(np.int32), count.astype(np.int32), weights / total)


def fixed_point(axis: AxisWeights) -> AxisWeights:
    """Return the int32 weights for images of bytes (normalize_coeffs_8bpc).

    A sum begins with one half, ``2**(FIXED_BITS - 1)``, and is shifted right by ``FIXED_BITS``.
    """
    weights = np.floor(axis.weights * 2.0**FIXED_BITS + 0.5).astype(np.int32)
    return AxisWeights(axis.first, axis.count, weights)


def _identity(size: int) -> AxisWeights:
    """Return weights that copy an axis, as Pillow does when the size stays."""
    ones = np.ones(size, dtype=np.int32)
    return AxisWeights(np.arange(size, dtype=np.int32), ones, np.ones((size, 1)))
