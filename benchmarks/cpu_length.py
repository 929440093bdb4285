"""Measure whether a long stream keeps its speed and its memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rvos_deploy.benchmarks.cpu_streams import DecodedClip
from rvos_deploy.benchmarks.timing import push_through
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.environment import resident_memory_bytes
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.video.frames import Frame

SAMPLES = 20
"""Points of the curve."""


def measure_length(
    bundle: Bundle, backend: Backend, video: DecodedClip, length: int
) -> dict[str, Any]:
    """Push ``length`` frames through one stream; the clip repeats.

    Returns:
        By the number of frames so far: the median milliseconds of a frame since the last point, and
        the resident bytes of the process.
    """
    frames = video.frames
    every = max(1, length // SAMPLES)
    curve, seconds = [], []
    with Segmenter(bundle, backend) as segmenter, segmenter.stream(video.texts[:1]) as stream:
        for number in range(length):
            frame = Frame(number, number / 24, frames[number % len(frames)].image)
            started = time.perf_counter()
            push_through(stream, frame)
            seconds.append(time.perf_counter() - started)
            if (number + 1) % every == 0:
                curve.append(
                    {
                        "frames": number + 1,
                        "milliseconds": float(np.median(seconds) * 1e3),
                        "resident_bytes": resident_memory_bytes(),
                    }
                )
                seconds.clear()
    return {"frames": length, "curve": curve}
