"""Measure how far an array is from its reference, in terms that help to find the cause."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLES = 4096
"""Number of values per output that a bundle records for later verification."""


@dataclass(frozen=True)
class Comparison:
    """Hold the differences of a tensor from its reference.

    ``max_abs`` is the largest difference divided by ``scale``. ``scale`` is the reference's largest
    magnitude, but at least 1, so one tolerance fits logits of any size. ``max_rel`` is the largest
    difference over the root mean square of the reference, and ``worst_index`` its position.
    """

    max_abs: float
    max_rel: float
    cosine: float
    scale: float
    worst_index: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "worst_index": list(self.worst_index)}


def compare(reference: NDArray[Any], measured: NDArray[Any]) -> Comparison:
    """Compare two arrays in float64; other shapes and non-finite values are infinitely far."""
    if reference.shape != measured.shape:
        return Comparison(INFINITY, INFINITY, -1.0, 1.0, ())
    wide, other = reference.astype(np.float64), measured.astype(np.float64)
    difference = np.abs(wide - other)
    if not np.isfinite(difference).all():
        worst = np.unravel_index(np.argmin(np.isfinite(difference)), difference.shape)
        return Comparison(INFINITY, INFINITY, -1.0, 1.0, tuple(int(i) for i in worst))
    scale = max(1.0, float(np.abs(wide).max()))
    largest = float(difference.max())
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    return Comparison(
        max_abs=largest / scale,
        max_rel=largest / max(float(np.sqrt((wide**2).mean())), 1e-12),
        cosine=_cosine(wide.ravel(), other.ravel()),
        scale=scale,
        worst_index=tuple(int(i) for i in worst),
    )


INFINITY = 1e30
"""Infinity, for which JSON has no number."""


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not norms:
        return 1.0 if not (a.any() or b.any()) else 0.0
    return float(a @ b) / norms


def sample(array: NDArray[Any]) -> NDArray[Any]:
    """Return at most 4,096 values of the array, evenly spread over its flat order."""
    flat = array.ravel()
    if flat.size <= SAMPLES:
        return flat
    return flat[np.linspace(0, flat.size - 1, SAMPLES).astype(np.int64)]
