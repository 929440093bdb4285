"""Hold what benchmarks of streams share: texts, frames, summaries of times, comparison of masks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.video import open_video
from rvos_deploy.video.frames import Frame

PERCENTILES = (50, 90, 95, 99)

MINIMUM_FRAMES = 8
"""Moving Sprites needs so many frames to show a motion."""

CLIP_SIZE = (480, 854)
"""Height and width in pixels of a rendered clip."""

EXPRESSIONS = (
    "the red star moving to the left",
    "the small circle",
    "the dog next to the blue square",
    "everything that moves up",
    "the object that turns back",
    "the largest object",
    "the two green triangles",
    "the one that stands still",
)


@dataclass(frozen=True)
class Clip:
    """Hold a rendered video, and its expressions that have a target: their masks are not empty."""

    path: str
    texts: tuple[str, ...]


def render_clip(path: Path, frames: int) -> Clip:
    """Render a clip of Moving Sprites."""
    sample = sample_video(path, seed=0, size=CLIP_SIZE, frames=max(frames, MINIMUM_FRAMES))
    return Clip(str(path), tuple(one.text for one in sample.expressions if one.targets))


def texts_of(known: Sequence[str], count: int) -> list[str]:
    """Return so many expressions; they repeat if fewer are known."""
    return [known[number % len(known)] for number in range(count)]


def decode_frames(source: str, count: int) -> tuple[list[Frame], list[float]]:
    """Return frames, and the seconds to decode each one (opening the video decodes the first)."""
    images, seconds = [], []
    with open_video(source, max_frames=count) as reader:
        started = time.perf_counter()
        for frame in reader:
            seconds.append(time.perf_counter() - started)
            images.append(frame)
            started = time.perf_counter()
    return images, seconds


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


def mask_parity(ours: Sequence[FrameMasks], theirs: Sequence[FrameMasks]) -> float:
    """Return J&F between two lists of masks, over all frames and expressions."""
    pairs = [
        frame_scores(mine.masks, other.masks).j_and_f
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return float(np.mean(pairs))
