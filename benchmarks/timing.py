"""Summarise measured times under the keys that every result shares, and push frames to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.video.frames import Frame

PERCENTILES = (50, 90, 95, 99)


def summarise(seconds: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
    """Return calls per second, and p50, p90, p95 and p99 of single calls in ``milliseconds``."""
    times = np.asarray(seconds, dtype=np.float64)
    return {
        "count": len(times),
        "frames_per_second": float(len(times) / times.sum()),
        "milliseconds": {f"p{p}": float(np.percentile(times, p) * 1e3) for p in PERCENTILES},
    }


def push_through(stream: Stream, frame: Frame | NDArray[np.uint8]) -> list[FrameMasks]:
    """Push a frame and wait for the masks that it decides; otherwise their download would go
    untimed.
    """
    results = stream.push(frame)
    for result in results:
        _ = result.masks
    return results
