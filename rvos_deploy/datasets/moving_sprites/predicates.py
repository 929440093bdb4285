"""Measure every object of a video, and decide predicates of motion and place by the measurements.

A predicate is True, False, or None if a person might doubt it. An expression is kept only if its
predicate is True of its targets and False of all other objects, so None is the margin between both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.render import visibility
from rvos_deploy.datasets.moving_sprites.world import Array, SpriteVideo

Ternary = bool | None
"""A truth value of three-valued logic; None is undecided."""

SEEN = 0.25
"""An object is seen in a frame if at least this fraction of it is visible."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """Hold the measurements of one object over a video.

    Horizontal lengths are in frame widths, vertical lengths in frame heights; ``extent`` and
    ``rate`` are in path units (``WorldConfig.path_unit``).

    centres: float64 [T, 2], pixels. seen: bool [T]. inside: float64 [T] in 0 .. 1, the part of the
    object that lies in the frame. All other fields are measured over the frames in which the object
    is seen. net: displacement from the first to the last frame. runs: greatest displacement between
    any two moments to the left, right, up and down. spans: range of x and of y. extent: diagonal of
    the range. share: fraction of the time in motion. rate: length of the path if the object moved
    all the time. head, tail: fraction of the time at the first and at the last place. legs_x,
    legs_y: signed lengths between reversals. winding: degrees turned about the middle of the path,
    clockwise positive. roundness: least over greatest distance from that middle. growth: last size
    over first size.
    """

    centres: Array
    seen: npt.NDArray[np.bool_]
    inside: Array
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
        """Return the fraction of the frames with the object inside in which it is also seen."""
        present = self.inside >= 0.5
        return float(self.seen[present].mean()) if present.any() else 0.0

    @property
    def reversals(self) -> int:
        """Return the number of reversals along the axis that has more of them."""
        return max(len(self.legs_x), len(self.legs_y)) - 1


def _legs(values: Array, least: float) -> tuple[float, ...]:
    """Split a path into signed lengths between reversals; ignore swings below ``least``."""
    low = high = float(values[0])
    pivots: list[float] = []
    direction = 0
    for value in values.tolist():
        low, high = min(low, value), max(high, value)
        if direction <= 0 and value - low >= least:
            pivots.append(low)
            direction, high = 1, value
        elif direction >= 0 and high - value >= least:
            pivots.append(high)
            direction, low = -1, value
    pivots.append(high if direction > 0 else low)
    return tuple(np.diff(pivots).tolist())


def _count_settled(points: Array, radius: float) -> int:
    """Count the leading points that lie within ``radius`` of the first point."""
    far = np.hypot(*(points - points[0]).T) > radius
    return int(far.argmax()) if far.any() else len(points)


def _turning(points: Array, unit: float) -> tuple[float, float]:
    """Return winding (degrees, clockwise positive) and roundness about the middle of the path."""
    spokes = points - (points.max(axis=0) + points.min(axis=0)) / 2
    radii = np.hypot(spokes[:, 0], spokes[:, 1])
    if radii.max() < 0.08 * unit:
        return 0.0, 0.0
    angles = np.unwrap(np.arctan2(spokes[:, 1], spokes[:, 0]))
    return float(np.rad2deg(angles[-1] - angles[0])), float(radii.min() / radii.max())


def _greatest_rise(values: Array) -> float:
    """Return the greatest increase from any moment to a later one."""
    return float((values - np.minimum.accumulate(values)).max())


def _measure_object(video: SpriteVideo, k: int, inside: Array, visible: Array) -> Measurements:
    item, config = video.objects[k], video.config
    unit = config.path_unit
    seen = visible >= SEEN
    used = seen if np.count_nonzero(seen) >= 2 else np.ones_like(seen)
    points, sizes = item.centres[used], item.diameters[used]
    moments = np.flatnonzero(used)
    x, y = (points / np.array([config.width, config.height], np.float64)).T
    lengths = np.hypot(*np.diff(points, axis=0).T) / unit
    durations = np.diff(moments) / (config.frames - 1)
    moving = lengths / durations > 0.14
    moved = float(durations[moving].sum())
    winding, roundness = _turning(points, unit)
    total = float(moments[-1] - moments[0] + 1)
    return Measurements(
        centres=item.centres,
        seen=seen,
        inside=inside,
        net=(float(x[-1] - x[0]), float(y[-1] - y[0])),
        runs={
            "left": _greatest_rise(-x),
            "right": _greatest_rise(x),
            "up": _greatest_rise(-y),
            "down": _greatest_rise(y),
        },
        spans=(float(np.ptp(x)), float(np.ptp(y))),
        extent=float(np.hypot(*np.ptp(points, axis=0)) / unit),
        share=moved / float(durations.sum()),
        rate=float(lengths[moving].sum()) / moved if moved else 0.0,
        head=_count_settled(points, 0.04 * unit) / total,
        tail=_count_settled(points[::-1], 0.04 * unit) / total,
        legs_x=_legs(x, 0.09),
        legs_y=_legs(y, 0.12),
        winding=winding,
        roundness=roundness,
        growth=float(sizes[-1] / sizes[0]),
    )


def measure(video: SpriteVideo) -> tuple[Measurements, ...]:
    """Measure every object of ``video``, in order."""
    inside, visible = visibility(video)
    return tuple(
        _measure_object(video, k, inside[k], visible[k]) for k in range(len(video.objects))
    )


# Predicates of one object.

HEADINGS = {"left": "right", "right": "left", "up": "down", "down": "up"}
"""The four directions, each with its opposite."""


def all_of(*values: Ternary) -> Ternary:
    """Return False if any value is False, else None if any is None, else True."""
    if any(value is False for value in values):
        return False
    return None if any(value is None for value in values) else True


def any_of(*values: Ternary) -> Ternary:
    """Return True if any value is True, else None if any is None, else False."""
    if any(values):
        return True
    return None if any(value is None for value in values) else False


def _grows(ratio: float) -> Ternary:
    return True if ratio >= 1.5 else (False if ratio <= 1.12 else None)


def is_still(m: Measurements) -> Ternary:
    """Decide whether an object stands still and keeps its size."""
    if m.extent >= 0.25:
        return False
    return True if m.extent <= 0.1 and 0.89 <= m.growth <= 1.12 else None


def _moving(m: Measurements) -> Ternary:
    if is_still(m):
        return False
    return True if m.extent >= 0.3 and m.share >= 0.75 else None


def _circling(m: Measurements) -> Ternary:
    if m.roundness <= 0.3 or abs(m.winding) <= 140:
        return False
    return True if abs(m.winding) >= 300 and m.roundness >= 0.5 else None


def _bounces(m: Measurements) -> Ternary:
    if len(m.legs_y) >= 4 and min(map(abs, m.legs_y)) >= 0.25 and m.spans[0] <= 0.12:
        return True
    return False if len(m.legs_y) <= 1 or _circling(m) or m.spans[1] <= 0.15 else None


def _shakes(m: Measurements) -> Ternary:
    inner = m.legs_x[1:-1]
    if len(m.legs_x) >= 4 and min(map(abs, inner)) >= 0.2 and m.spans[1] <= 0.15:
        return True
    return False if len(m.legs_x) <= 1 or _circling(m) or m.spans[0] <= 0.12 else None


def goes_nowhere(m: Measurements) -> bool:
    """Tell whether the object circles, bounces or shakes, so that its motion has no direction."""
    return bool(_circling(m) or _bounces(m) or _shakes(m))


def _straight(direction: str) -> Callable[[Measurements], Ternary]:
    axis = 0 if direction in ("left", "right") else 1

    def predicate(m: Measurements) -> Ternary:
        if m.runs[direction] <= 0.12 or goes_nowhere(m):
            return False
        straight = m.runs[HEADINGS[direction]] <= 0.05 and m.spans[1 - axis] <= 0.2
        straight = straight and m.reversals <= 0  # a narrow zigzag is not straight
        return True if m.runs[direction] >= 0.3 and straight and m.share >= 0.75 else None

    return predicate


def _diagonal(vertical: str, horizontal: str) -> Callable[[Measurements], Ternary]:
    def predicate(m: Measurements) -> Ternary:
        if min(m.runs[vertical], m.runs[horizontal]) <= 0.1 or goes_nowhere(m):
            return False
        back = max(m.runs[HEADINGS[vertical]], m.runs[HEADINGS[horizontal]])
        far = min(m.runs[vertical], m.runs[horizontal]) >= 0.27
        return True if far and back <= 0.05 and m.share >= 0.75 else None

    return predicate


def _zigzags(m: Measurements) -> Ternary:
    if m.reversals <= 1 or goes_nowhere(m):
        return False
    across = abs(m.net[0]) >= 0.35 and len(m.legs_x) == 1 and len(m.legs_y) >= 4
    along = abs(m.net[1]) >= 0.38 and len(m.legs_y) == 1 and len(m.legs_x) >= 4
    return True if across or along else None


def _turns_back(m: Measurements) -> Ternary:
    if m.reversals <= 0 or _circling(m) or _zigzags(m):
        return False
    for legs, side in ((m.legs_x, m.spans[1]), (m.legs_y, m.spans[0])):
        if len(legs) == 2 and min(map(abs, legs)) >= 0.28 and side <= 0.15 and m.share >= 0.8:
            return True
    return None


def _rests(m: Measurements, rest: float, other_rest: float, inside: float) -> Ternary:
    """Decide whether the object rests at one end of the clip and moves steadily otherwise."""
    if rest <= 0.15 or m.extent <= 0.1:
        return False
    steady = other_rest <= 0.17 and m.reversals <= 0 and m.extent >= 0.28
    return True if 0.38 <= rest <= 0.66 and steady and inside >= 0.9 else None


def _steady(m: Measurements) -> bool:
    return m.share >= 0.75 and m.reversals <= 0 and not _circling(m)


def _fast(m: Measurements) -> Ternary:
    if m.rate <= 0.6:
        return False
    return True if m.rate >= 0.93 and _steady(m) else None


def _slow(m: Measurements) -> Ternary:
    if m.extent <= 0.1 or m.rate >= 0.93:
        return False
    return True if 0.25 <= m.rate <= 0.57 and _steady(m) and m.extent >= 0.25 else None


_BORDERS = ("left", "right", "top", "bottom")


def _crosses(m: Measurements, border: str, entering: bool) -> Ternary:
    order = 1 if entering else -1
    inside, seen, centres = m.inside[::order], m.seen[::order], m.centres[::order]
    if inside[0] >= 0.9:
        return False
    away = int(seen.argmax()) / len(seen)  # fraction of the clip spent outside
    if inside[0] > 0 or away < 0.08 or inside[-1] < 0.95:
        return None
    # The trajectory points away from the border that it crosses.
    step = centres[-1] - centres[0]
    if abs(step[0]) > abs(step[1]):
        return border == ("left" if step[0] > 0 else "right")
    return border == ("top" if step[1] > 0 else "bottom")


def _border(border: str, entering: bool) -> Callable[[Measurements], Ternary]:
    return lambda m: _crosses(m, border, entering)


def _any_border(entering: bool) -> Callable[[Measurements], Ternary]:
    return lambda m: any_of(*(_crosses(m, border, entering) for border in _BORDERS))


PREDICATES: dict[str, Callable[[Measurements], Ternary]] = {
    "still": is_still,
    "moving": _moving,
    "left": _straight("left"),
    "right": _straight("right"),
    "up": _straight("up"),
    "down": _straight("down"),
    "up_left": _diagonal("up", "left"),
    "up_right": _diagonal("up", "right"),
    "down_left": _diagonal("down", "left"),
    "down_right": _diagonal("down", "right"),
    "fast": _fast,
    "slow": _slow,
    "circling": _circling,
    "clockwise": lambda m: all_of(_circling(m), m.winding > 0),
    "counterclockwise": lambda m: all_of(_circling(m), m.winding < 0),
    "zigzag": _zigzags,
    "bounce": _bounces,
    "shake": _shakes,
    "stop": lambda m: _rests(m, m.tail, m.head, float(m.inside[-1])),
    "start": lambda m: _rests(m, m.head, m.tail, float(m.inside[0])),
    "turn_back": _turns_back,
    "grow": lambda m: _grows(m.growth),
    "shrink": lambda m: _grows(1 / m.growth),
    "enter": _any_border(True),
    "leave": _any_border(False),
    **{f"enter_{border}": _border(border, True) for border in _BORDERS},
    **{f"leave_{border}": _border(border, False) for border in _BORDERS},
}
"""Predicates of the motion of one object, by name."""

OPPOSITES: dict[str, str] = {
    "left": "right", "up": "down", "up_left": "down_right", "up_right": "down_left", "fast": "slow",
    "clockwise": "counterclockwise", "stop": "start", "grow": "shrink", "enter": "leave",
    "enter_left": "enter_right", "enter_top": "enter_bottom", "leave_left": "leave_right",
    "leave_top": "leave_bottom", "still": "moving", "toward": "away", "bounce": "shake",
    "left_of": "right_of", "above": "below", "leftmost": "rightmost", "highest": "lowest",
}  # fmt: skip
OPPOSITES.update({b: a for a, b in list(OPPOSITES.items())})


# Predicates of two or more objects.


def approaches(mover: Measurements, goal: Measurements, unit: float, away: bool) -> Ternary:
    """Decide whether ``mover`` moves straight towards a still ``goal``, or away from it.

    ``unit`` is the path unit in pixels.
    """
    both = mover.seen & goal.seen
    if np.count_nonzero(both) < 3 or not is_still(goal):
        return None
    # Receding is approaching, played backwards.
    order = -1 if away else 1
    gap = (goal.centres[both] - mover.centres[both])[::order]
    distance = np.hypot(gap[:, 0], gap[:, 1]) / unit
    if _greatest_rise(-distance) <= 0.08:
        return False
    path = mover.centres[both][::order]
    step = path[-1] - path[0]
    cosine = float(step @ gap[0]) / (float(np.hypot(*step) * np.hypot(*gap[0])) + 1e-9)
    near = distance[-1] <= 0.55 * distance[0] and distance[0] - distance[-1] >= 0.3
    straight = cosine >= 0.94 and _greatest_rise(distance) <= 0.03
    return True if near and straight and mover.share >= 0.75 else None


def overtakes(index: int, measured: Sequence[Measurements]) -> Ternary:
    """Decide whether an object overtakes another object that moves in the same direction."""
    mover = measured[index]
    if is_still(mover) or goes_nowhere(mover):
        return False
    heading = next((d for d in HEADINGS if PREDICATES[d](mover)), None)
    if heading is None:
        return None
    axis, sign = int(heading in ("up", "down")), 1 if heading in ("right", "down") else -1
    results: list[Ternary] = []
    for other in (m for i, m in enumerate(measured) if i != index):
        both = mover.seen & other.seen
        if np.count_nonzero(both) < 3:
            results.append(None)
            continue
        lead = sign * (mover.centres[both] - other.centres[both])[:, axis]
        size = float(np.ptp(mover.centres[both][:, axis])) + 1e-9
        if lead[0] >= -0.03 * size or lead[-1] <= 0:
            results.append(False if lead[-1] <= 0 or lead[0] > 0.03 * size else None)
        else:
            clear = lead[0] <= -0.12 * size and lead[-1] >= 0.12 * size
            results.append(True if clear and PREDICATES[heading](other) else None)
    return any_of(*results)


def _mostly_seen_together(one: Measurements, other: Measurements) -> npt.NDArray[np.bool_] | None:
    """Return the frames that show both objects, bool [T], or None if they are fewer than 60%."""
    both = one.seen & other.seen
    return None if np.count_nonzero(both) < 0.6 * len(both) else both


def beside(
    relation: str, item: Measurements, other: Measurements, width: int, height: int
) -> Ternary:
    """Decide one of ``RELATIONS`` over all frames that show both objects."""
    both = _mostly_seen_together(item, other)
    if both is None:
        return None
    gap = (other.centres[both] - item.centres[both]) / (width, height)
    axis = 0 if relation in ("left_of", "right_of") else 1
    ahead = gap[:, axis] * (1 if relation in ("left_of", "above") else -1)
    pixels = np.abs(gap * (width, height)).mean(axis=0)
    if ahead.max() <= -0.03:
        return False
    margin = 0.09 if axis == 0 else 0.14
    return True if ahead.min() >= margin and pixels[axis] >= 0.7 * pixels[1 - axis] else None


def is_extreme(
    superlative: str, item: Measurements, others: Sequence[Measurements], width: int, height: int
) -> Ternary:
    """Decide whether one of ``SUPERLATIVES`` is true of an object among others in every frame."""
    axis = 0 if superlative in ("leftmost", "rightmost") else 1
    sign = 1 if superlative in ("leftmost", "highest") else -1
    margin = (0.08 * width, 0.12 * height)[axis]
    results: list[Ternary] = []
    for other in others:
        both = _mostly_seen_together(item, other)
        if both is None:
            return None
        gap = sign * (other.centres[both] - item.centres[both])[:, axis]
        results.append(
            True if gap.min() >= margin else (False if gap.max() <= -margin / 3 else None)
        )
    return all_of(*results)
