"""Select the queries that belong to the answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.stream_settings import Fallback


def thresholds(
    scores: NDArray[np.float32], threshold: float, fallback: Fallback
) -> NDArray[np.float32]:
    """Return the threshold of every expression, float32 [E], for scores float32 [E,N].

    A query passes if its score is greater. The fallback ``top1`` lowers the threshold to just below
    the best score, so the best query always passes.
    """
    per_expression = np.full(len(scores), threshold, dtype=np.float32)
    if fallback == "none":
        return per_expression
    below_best = np.nextafter(scores.max(axis=1), np.float32(-1))
    lowered: NDArray[np.float32] = np.minimum(per_expression, below_best)
    return lowered
