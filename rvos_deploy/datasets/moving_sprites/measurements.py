"""Measuring what is seen of each object: the numbers that claims.py judges by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.render import visibility
from rvos_deploy.datasets.moving_sprites.world import SpriteVideo

Array = npt.NDArray[np.float64]

SEEN = 0.25
"""An object counts as seen in a frame where at least this part of it is visible."""


@dataclass(frozen=True, eq=False)
class Facts:
    """The measured course of one object. Horizontal lengths in frame widths, vertical in frame
    heights, ``extent``, ``path`` and ``rate`` in units of three quarters of the frame's longer
    side.

    centres: float64 [T, 2], pixels. seen: bool [T]. inside, visible: float64 [T] in 0 .. 1. The
    rest is measured over the frames where the object is seen. net: displacement from first to last.
    runs: greatest displacement between any two moments to the left, right, up and down. spans:
    greatest less least x, y. share: part of the time in motion. rate: length of the path, had it
    moved all the time. head, tail: part of the clip spent at the first and at the last place.
    legs_x, legs_y: signed lengths between reversals. winding: degrees turned about the path's
    middle, clockwise positive. roundness: least over greatest distance from that middle. growth:
    last over first size.
    """

    centres: Array
    seen: npt.NDArray[np.bool_]
    inside: Array
    visible: Array
    net: tuple[float, float]
    runs: dict[str, float]
    spans: tuple[float, float]
    extent: float
    share: float
    rate: float
    head: float
    tail: float
    legs_x: tuple[float, ...]
    legs_y: tuple[float, ...]
    winding: float
    roundness: float
    growth: float

    @property
    def shown(self) -> float:
        """Part of the frames with the object inside the frame in which it is also seen."""
        present = self.inside >= 0.5
        return float(self.seen[present].mean()) if present.any() else 0.0


def _legs(values: Array, least: float) -> tuple[float, ...]:
    """Split a course into signed lengths between reversals; swings below ``least`` are ignored."""
    low = high = float(values[0])
    pivots: list[float] = []
    sense = 0
    for value in values.tolist():
        low, high = min(low, value), max(high, value)
        if sense <= 0 and value - low >= least:
            pivots.append(low)
            sense, high = 1, value
        elif sense >= 0 and high - value >= least:
            pivots.append(high)
            sense, low = -1, value
    pivots.append(high if sense > 0 else low)
    return tuple(np.diff(pivots).tolist())


def _settled(points: Array, radius: float) -> int:
    """Count the leading points that lie within ``radius`` of the first."""
    far = np.hypot(*(points - points[0]).T) > radius
    return int(far.argmax()) if far.any() else len(points)


def _turning(points: Array, unit: float) -> tuple[float, float]:
    """Return winding (degrees, clockwise to the eye) and roundness about the middle of the path."""
    spokes = points - (points.max(axis=0) + points.min(axis=0)) / 2
    radii = np.hypot(spokes[:, 0], spokes[:, 1])
    if radii.max() < 0.08 * unit:
        return 0.0, 0.0
    angles = np.unwrap(np.arctan2(spokes[:, 1], spokes[:, 0]))
    return float(np.rad2deg(angles[-1] - angles[0])), float(radii.min() / radii.max())


def _facts(video: SpriteVideo, k: int, inside: Array, visible: Array) -> Facts:
    item, config = video.objects[k], video.config
    size = np.array([config.width, config.height], np.float64)
    unit = 0.75 * max(config.height, config.width)
    seen = visible >= SEEN
    used = seen if np.count_nonzero(seen) >= 2 else np.ones_like(seen)
    points, sizes = item.centres[used], item.diameters[used]
    moments = np.flatnonzero(used)
    parts = points / size
    x, y = parts[:, 0], parts[:, 1]
    lengths = np.hypot(*np.diff(points, axis=0).T) / unit
    durations = np.diff(moments) / (config.frames - 1)
    moving = lengths / durations > 0.14
    moved = float(durations[moving].sum())
    winding, roundness = _turning(points, unit)
    last = float(moments[-1] - moments[0] + 1)
    return Facts(
        centres=item.centres,
        seen=seen,
        inside=inside,
        visible=visible,
        net=(float(x[-1] - x[0]), float(y[-1] - y[0])),
        runs={
            "left": float((np.maximum.accumulate(x) - x).max()),
            "right": float((x - np.minimum.accumulate(x)).max()),
            "up": float((np.maximum.accumulate(y) - y).max()),
            "down": float((y - np.minimum.accumulate(y)).max()),
        },
        spans=(float(np.ptp(x)), float(np.ptp(y))),
        extent=float(np.hypot(*np.ptp(points, axis=0)) / unit),
        share=moved / float(durations.sum()),
        rate=float(lengths[moving].sum()) / moved if moved else 0.0,
        head=_settled(points, 0.04 * unit) / last,
        tail=_settled(points[::-1], 0.04 * unit) / last,
        legs_x=_legs(x, 0.09),
        legs_y=_legs(y, 0.12),
        winding=winding,
        roundness=roundness,
        growth=float(sizes[-1] / sizes[0]),
    )


def measure(video: SpriteVideo) -> tuple[Facts, ...]:
    """Measure every object of ``video``, in order."""
    inside, visible = visibility(video)
    return tuple(_facts(video, k, inside[k], visible[k]) for k in range(len(video.objects)))
