"""Draw trajectories that show a named motion inside an arena.

A trajectory is only a proposal: ``predicates.py`` measures whether the motion is visible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rvos_deploy.datasets.moving_sprites.rng import chance, uniform
from rvos_deploy.datasets.moving_sprites.world import Array

DRIFT = 0.03
"""Greatest drift of the camera, as a fraction of the frame's width and height."""


@dataclass(frozen=True)
class Arena:
    """Describe the space that an object may move in: a frame of width x height pixels.

    radius: radius of the object in pixels.
    """

    width: int
    height: int
    frames: int
    radius: float

    @property
    def clock(self) -> Array:
        """Return the time of each frame, 0 .. 1: float64 [frames]."""
        return np.linspace(0, 1, self.frames)

    def size(self, axis: int) -> int:
        """Return the width (axis 0) or the height (axis 1) in pixels."""
        return (self.width, self.height)[axis]

    def margin(self, axis: int) -> float:
        """Return the least distance of a centre from the border, in pixels.

        At this distance the camera drift cannot push the object out of the frame.
        """
        return self.radius + DRIFT * self.size(axis)

    def free_share(self, axis: int) -> float:
        """Return the fraction of ``size(axis)`` that a centre may lie in."""
        size = self.size(axis)
        return (size - 2 * self.margin(axis)) / size


@dataclass(frozen=True)
class Trajectory:
    """Hold position and size of an object over time.

    centres: float64 [T, 2], x and y in pixels. scales: float64 [T], fraction of the full diameter.
    """

    centres: Array
    scales: Array


@dataclass(frozen=True)
class _Draft:
    """Hold a motion about the origin.

    fixed: the axes that already hold frame coordinates, because an entry or exit needs its border.
    """

    x: Array
    y: Array
    scales: Array | None = None
    fixed: tuple[bool, bool] = (False, False)


_Builder = Callable[[np.random.Generator, Arena], _Draft | None]


def _draw_extent(
    rng: np.random.Generator, arena: Arena, axis: int, low: float, high: float
) -> float | None:
    """Draw an extent of ``low`` .. ``high`` of the frame, in pixels; None if no extent fits."""
    top = min(high, arena.free_share(axis))
    return None if top < low else arena.size(axis) * uniform(rng, low, top)


def _eased(rng: np.random.Generator, clock: Array) -> Array:
    """Bend a clock slightly, so that a steady motion speeds up or slows down a little."""
    bend = uniform(rng, -0.3, 0.3)
    return clock + bend * np.sin(2 * np.pi * clock) / (2 * np.pi)


def _wiggle(rng: np.random.Generator, clock: Array, size: float) -> Array:
    """Draw a slow sideways motion of at most 3% of ``size``."""
    swing = size * uniform(rng, 0, 0.03)
    return swing * np.sin(2 * np.pi * (clock * uniform(rng, 0.5, 1.2) + uniform(rng, 0, 1)))


def _on_axis(axis: int, main: Array, side: Array) -> _Draft:
    """Return a motion of ``main`` along ``axis`` and ``side`` along the other axis."""
    return _Draft(main, side) if axis == 0 else _Draft(side, main)


def _draw_sign(rng: np.random.Generator) -> int:
    return 1 if chance(rng, 0.5) else -1


def _along(
    rng: np.random.Generator, arena: Arena, axis: int, sign: int, extent: float, progress: Array
) -> _Draft:
    """Move ``extent`` pixels along an axis at ``progress`` 0 .. 1, with a slight wiggle."""
    side = _wiggle(rng, progress, arena.size(1 - axis))
    return _on_axis(axis, sign * extent * progress, side)


def _line(axis: int, sign: int, low: float, high: float) -> _Builder:
    def build(rng: np.random.Generator, arena: Arena) -> _Draft | None:
        extent = _draw_extent(rng, arena, axis, low, high)
        if extent is None:
            return None
        return _along(rng, arena, axis, sign, extent, _eased(rng, arena.clock))

    return build


def _diagonal(right: int, down: int) -> _Builder:
    def build(rng: np.random.Generator, arena: Arena) -> _Draft | None:
        dx, dy = _draw_extent(rng, arena, 0, 0.33, 0.55), _draw_extent(rng, arena, 1, 0.38, 0.62)
        if dx is None or dy is None:
            return None
        progress = _eased(rng, arena.clock)
        return _Draft(right * dx * progress, down * dy * progress)

    return build


def _still(rng: np.random.Generator, arena: Arena) -> _Draft:
    return _Draft(np.zeros(arena.frames), np.zeros(arena.frames))


def _paced(low: float, high: float) -> _Builder:
    """Move steadily by ``low`` .. ``high`` path units (``WorldConfig.path_unit``)."""

    def build(rng: np.random.Generator, arena: Arena) -> _Draft | None:
        axis = 0 if arena.width >= arena.height else 1
        return _line(axis, _draw_sign(rng), low * 0.75, high * 0.75)(rng, arena)

    return build


def _circle(sense: int) -> _Builder:
    def build(rng: np.random.Generator, arena: Arena) -> _Draft | None:
        axis = 0 if arena.width <= arena.height else 1
        short = arena.size(axis)
        top = min(0.32, arena.free_share(axis) / 2)
        if top < 0.17:
            return None
        radius = short * uniform(rng, max(0.17, 0.75 * top), top)
        # The y axis points down, so a growing angle looks clockwise.
        angle = 2 * np.pi * (uniform(rng, 0, 1) + sense * uniform(rng, 1.0, 1.2) * arena.clock)
        return _Draft(radius * np.cos(angle), radius * np.sin(angle))

    return build


def _triangle_wave(phase: Array) -> Array:
    """Return a softened triangle wave: 0 at 0, 1 at 1/4, -1 at 3/4."""
    return 2 / np.pi * np.arcsin(0.97 * np.sin(2 * np.pi * phase))


# Zigzags, bounces and shakes have few periods, because more would look like noise in 6 to 8 frames.


def _zigzag(rng: np.random.Generator, arena: Arena) -> _Draft | None:
    axis = 0 if chance(rng, 0.7) else 1
    sign = _draw_sign(rng)
    ahead = _draw_extent(rng, arena, axis, 0.45, 0.72)
    swing = _draw_extent(rng, arena, 1 - axis, *((0.34, 0.44) if axis == 0 else (0.24, 0.34)))
    if ahead is None or swing is None:
        return None
    main = sign * ahead * arena.clock
    side = _draw_sign(rng) * swing / 2 * _triangle_wave(1.5 * arena.clock)
    return _on_axis(axis, main, side)


def _bounce(rng: np.random.Generator, arena: Arena) -> _Draft | None:
    height = _draw_extent(rng, arena, 1, 0.4, 0.6)
    if height is None:
        return None
    hops = uniform(rng, 2.25, 2.4)
    return _Draft(np.zeros(arena.frames), -height * np.abs(np.sin(hops * np.pi * arena.clock)))


def _shake(rng: np.random.Generator, arena: Arena) -> _Draft | None:
    width = _draw_extent(rng, arena, 0, 0.3, 0.42)
    if width is None:
        return None
    sign = _draw_sign(rng)
    swings = uniform(rng, 1.6, 1.9)
    x = sign * width / 2 * np.sin(2 * swings * np.pi * arena.clock)
    return _Draft(x, np.zeros(arena.frames))


def _unsteady(progress: Callable[[np.random.Generator, Array], Array]) -> _Builder:
    """Move along a line in one of four directions, at an unsteady ``progress``."""

    def build(rng: np.random.Generator, arena: Arena) -> _Draft | None:
        axis = 0 if chance(rng, 0.65) else 1
        sign = _draw_sign(rng)
        extent = _draw_extent(rng, arena, axis, 0.4, 0.62)
        if extent is None:
            return None
        return _along(rng, arena, axis, sign, extent, progress(rng, arena.clock))

    return build


def _move_then_rest(rng: np.random.Generator, clock: Array) -> Array:
    return np.clip(clock / uniform(rng, 0.42, 0.52), 0, 1)


def _rest_then_move(rng: np.random.Generator, clock: Array) -> Array:
    return 1 - np.clip((1 - clock) / uniform(rng, 0.42, 0.52), 0, 1)


def _there_and_back(rng: np.random.Generator, clock: Array) -> Array:
    turn = uniform(rng, 0.44, 0.56)
    return np.minimum(clock / turn, (1 - clock) / (1 - turn))


def _border(axis: int, far: bool, entering: bool) -> _Builder:
    """Enter or leave across the left or top border, or across the right or bottom if ``far``."""

    def build(rng: np.random.Generator, arena: Arena) -> _Draft | None:
        size = arena.size(axis)
        inside = max(arena.margin(axis), size * uniform(rng, 0.45, 0.62))
        if inside > size - arena.margin(axis):
            return None
        outside = -(arena.radius + DRIFT * size + 2)
        wait = uniform(rng, 0.13, 0.2)
        progress = np.clip((arena.clock - wait) / (1 - wait), 0, 1)
        main = outside + (inside - outside) * progress
        main = main if entering else main[::-1]
        main = size - main if far else main
        side = _wiggle(rng, arena.clock, arena.size(1 - axis))
        if axis == 0:
            return _Draft(main, side, fixed=(True, False))
        return _Draft(side, main, fixed=(False, True))

    return build


def _resize(growing: bool) -> _Builder:
    def build(rng: np.random.Generator, arena: Arena) -> _Draft:
        scales = uniform(rng, 1.68, 1.85) ** (-arena.clock)
        still = np.zeros(arena.frames)
        return _Draft(still, still, scales[::-1] if growing else scales)

    return build


_BUILDERS: dict[str, _Builder] = {
    "still": _still,
    "left": _line(0, -1, 0.4, 0.66),
    "right": _line(0, 1, 0.4, 0.66),
    "up": _line(1, -1, 0.42, 0.72),
    "down": _line(1, 1, 0.42, 0.72),
    "up_left": _diagonal(-1, -1),
    "up_right": _diagonal(1, -1),
    "down_left": _diagonal(-1, 1),
    "down_right": _diagonal(1, 1),
    "fast": _paced(0.98, 1.1),
    "slow": _paced(0.47, 0.52),
    "clockwise": _circle(1),
    "counterclockwise": _circle(-1),
    "zigzag": _zigzag,
    "bounce": _bounce,
    "shake": _shake,
    "stop": _unsteady(_move_then_rest),
    "start": _unsteady(_rest_then_move),
    "turn_back": _unsteady(_there_and_back),
    "enter_left": _border(0, False, True),
    "enter_right": _border(0, True, True),
    "enter_top": _border(1, False, True),
    "enter_bottom": _border(1, True, True),
    "leave_left": _border(0, False, False),
    "leave_right": _border(0, True, False),
    "leave_top": _border(1, False, False),
    "leave_bottom": _border(1, True, False),
    "grow": _resize(True),
    "shrink": _resize(False),
}

MOTIONS: tuple[str, ...] = tuple(_BUILDERS)
"""All motions that one object can make alone."""


def _place(rng: np.random.Generator, arena: Arena, axis: int, values: Array) -> Array | None:
    """Shift ``values`` to a random place that keeps the margin; None if no place does."""
    margin = arena.margin(axis)
    low, high = margin - float(values.min()), arena.size(axis) - margin - float(values.max())
    return None if high < low else values + uniform(rng, low, high)


def draw_trajectory(motion: str, rng: np.random.Generator, arena: Arena) -> Trajectory | None:
    """Draw a trajectory that shows ``motion`` in ``arena``, or return None if it does not fit."""
    draft = _BUILDERS[motion](rng, arena)
    if draft is None:
        return None
    placed: list[Array] = []
    for axis, values in enumerate((draft.x, draft.y)):
        shifted = values if draft.fixed[axis] else _place(rng, arena, axis, values)
        if shifted is None:
            return None
        placed.append(shifted)
    scales = np.ones(arena.frames) if draft.scales is None else draft.scales
    return Trajectory(np.stack(placed, axis=1), scales)


def draw_approach(
    rng: np.random.Generator, arena: Arena, goal: Array, gap: float, away: bool
) -> Trajectory | None:
    """Draw a straight trajectory that ends ``gap`` pixels from ``goal`` (x, y).

    If ``away``, the trajectory is reversed and starts there.
    """
    least = 0.42 * max(arena.width, arena.height) + gap
    for _ in range(12):
        x = uniform(rng, arena.margin(0), arena.width - arena.margin(0))
        y = uniform(rng, arena.margin(1), arena.height - arena.margin(1))
        apart = float(np.hypot(x - goal[0], y - goal[1]))
        if apart < least:
            continue
        progress = _eased(rng, arena.clock)[:, None] * (1 - gap / apart)
        start = np.array([x, y])
        centres = start + (goal - start) * progress
        return Trajectory(centres[::-1] if away else centres, np.ones(arena.frames))
    return None


def draw_overtaking(
    rng: np.random.Generator, arena: Arena, lane_gap: float
) -> tuple[Trajectory, Trajectory] | None:
    """Draw two trajectories in the same horizontal direction; the first overtakes the second.

    ``lane_gap`` is the least distance between the two lanes, in pixels.
    """
    width, margin = arena.width, arena.margin(0)
    fast = min(uniform(rng, 0.7, 0.8), arena.free_share(0)) * width
    slow, lead = uniform(rng, 0.32, 0.36) * width, uniform(rng, 0.14, 0.18) * width
    low, high = arena.margin(1), arena.height - arena.margin(1)
    if fast < 0.66 * width or high - low < lane_gap:
        return None
    lane = uniform(rng, low, high - lane_gap)
    other = uniform(rng, lane + lane_gap, high)
    lanes = (lane, other) if chance(rng, 0.5) else (other, lane)
    start = uniform(rng, margin, width - margin - fast)
    xs = [start + fast * arena.clock, start + lead + slow * arena.clock]
    if chance(rng, 0.5):
        xs = [width - x for x in xs]
    ones = np.ones(arena.frames)
    first, second = (
        Trajectory(np.stack([x, np.full(arena.frames, y)], axis=1), ones)
        for x, y in zip(xs, lanes, strict=True)
    )
    return first, second
