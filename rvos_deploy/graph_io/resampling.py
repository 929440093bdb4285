"""Pillow's bilinear resizing as numbers: which pixels an output pixel is made of, and how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FIXED_BITS = 22
"""Pillow's PRECISION_BITS: sums of bytes are made of whole numbers."""


@dataclass(frozen=True)
class Taps:
    """What every position of one axis is the weighted sum of.

    Args:
        first: int32 [size]: the first source position.
        count: int32 [size]: how many from there on; at least 1.
        weights: [size, most]: their weights, float64, or int32 in units of 2**-``FIXED_BITS``; what
            is beyond ``count`` is 0.
    """

    first: NDArray[np.int32]
    count: NDArray[np.int32]
    weights: NDArray[np.float64] | NDArray[np.int32]


def bilinear_taps(source: int, end: float, size: int) -> Taps:
    """Taps of one axis when ``source`` positions, of which 0 to ``end`` count, become ``size``.

    The numbers are those of Pillow's ``Image.resize`` with ``BILINEAR`` (precompute_coeffs in its
    Resample.c), bit by bit. Its triangle is one source position wide when the axis grows; when it
    shrinks it is as wide as the scale, so that every source position takes part.
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
    # One after the other: a sum in pairs would round otherwise.
    total = np.add.accumulate(weights, axis=1)[:, -1:]
    return Taps(first.astype(np.int32), count.astype(np.int32), weights / total)


def fixed_point(taps: Taps) -> Taps:
    """The same for images of bytes (normalize_coeffs_8bpc): weights int32.

    A sum begins with one half, ``2**(FIXED_BITS - 1)``, and is shifted right by ``FIXED_BITS``.
    """
    weights = np.floor(taps.weights * 2.0**FIXED_BITS + 0.5).astype(np.int32)
    return Taps(taps.first, taps.count, weights)


def _identity(size: int) -> Taps:
    """Pillow leaves such an axis alone."""
    ones = np.ones(size, dtype=np.int32)
    return Taps(np.arange(size, dtype=np.int32), ones, np.ones((size, 1)))
