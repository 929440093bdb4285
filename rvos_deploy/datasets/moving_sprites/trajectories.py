"""Paths that carry out a named motion. Whether they did is measured by facts.py, not believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rvos_deploy.datasets.moving_sprites.arena import DRIFT, Array, Path, Room
from rvos_deploy.datasets.moving_sprites.rng import chance, uniform


@dataclass(frozen=True)
class _Draft:
    """A motion about the origin. ``fixed`` axes already hold frame coordinates (an entry needs its
    border).
    """

    x: Array
    y: Array
    scales: Array | None = None
    fixed: tuple[bool, bool] = (False, False)


_Builder = Callable[[np.random.Generator, Room], "_Draft | None"]


def _reach(
    rng: np.random.Generator, room: Room, axis: int, low: float, high: float
) -> float | None:
    """Draw an extent in pixels, ``low`` .. ``high`` parts of the frame, or None where it cannot
    fit.
    """
    size = (room.width, room.height)[axis]
    top = min(high, room.free(size))
    return None if top < low else size * uniform(rng, low, top)


def eased(rng: np.random.Generator, clock: Array) -> Array:
    """Bend a clock a little, so that a steady motion gains or loses some speed."""
    bend = uniform(rng, -0.3, 0.3)
    return clock + bend * np.sin(2 * np.pi * clock) / (2 * np.pi)


def _wiggle(rng: np.random.Generator, clock: Array, size: float) -> Array:
    swing = size * uniform(rng, 0, 0.03)
    return swing * np.sin(2 * np.pi * (clock * uniform(rng, 0.5, 1.2) + uniform(rng, 0, 1)))


def _along(
    rng: np.random.Generator, room: Room, axis: int, sign: int, extent: float, progress: Array
) -> _Draft:
    """Move ``extent`` pixels along an axis as ``progress`` 0 .. 1 says, with a slight sideways
    wiggle.
    """
    main = sign * extent * progress
    side = _wiggle(rng, progress, (room.height, room.width)[axis])
    return _Draft(main, side) if axis == 0 else _Draft(side, main)


def _line(axis: int, sign: int, low: float, high: float) -> _Builder:
    def build(rng: np.random.Generator, room: Room) -> _Draft | None:
        extent = _reach(rng, room, axis, low, high)
        if extent is None:
            return None
        return _along(rng, room, axis, sign, extent, eased(rng, room.clock))

    return build


def _diagonal(right: int, down: int) -> _Builder:
    def build(rng: np.random.Generator, room: Room) -> _Draft | None:
        dx, dy = _reach(rng, room, 0, 0.33, 0.55), _reach(rng, room, 1, 0.38, 0.62)
        if dx is None or dy is None:
            return None
        progress = eased(rng, room.clock)
        return _Draft(right * dx * progress, down * dy * progress)

    return build


def _still(rng: np.random.Generator, room: Room) -> _Draft:
    return _Draft(np.zeros(room.frames), np.zeros(room.frames))


def _paced(low: float, high: float) -> _Builder:
    """Cross ``low`` .. ``high`` of the longer side's unit, steadily: what fast and slow are
    measured in.
    """

    def build(rng: np.random.Generator, room: Room) -> _Draft | None:
        axis = 0 if room.width >= room.height else 1
        sign = 1 if chance(rng, 0.5) else -1
        return _line(axis, sign, low * 0.75, high * 0.75)(rng, room)

    return build


def _circle(sense: int) -> _Builder:
    def build(rng: np.random.Generator, room: Room) -> _Draft | None:
        short = min(room.width, room.height)
        top = min(0.32, room.free(short) / 2)
        if top < 0.17:
            return None
        radius = short * uniform(rng, max(0.17, 0.75 * top), top)
        # With y downwards, a growing angle is clockwise to the eye.
        angle = 2 * np.pi * (uniform(rng, 0, 1) + sense * uniform(rng, 1.0, 1.2) * room.clock)
        return _Draft(radius * np.cos(angle), radius * np.sin(angle))

    return build


def _triangle_wave(phase: Array) -> Array:
    """A softened triangle wave: 0 at 0, 1 at a quarter, -1 at three quarters."""
    return 2 / np.pi * np.arcsin(0.97 * np.sin(2 * np.pi * phase))


# Zigzags, hops and swings are few: more would look like noise in six or eight sampled frames.


def _zigzag(rng: np.random.Generator, room: Room) -> _Draft | None:
    axis = 0 if chance(rng, 0.7) else 1
    sign = 1 if chance(rng, 0.5) else -1
    ahead = _reach(rng, room, axis, 0.45, 0.72)
    swing = (
        _reach(rng, room, 1 - axis, 0.34, 0.44) if axis == 0 else _reach(rng, room, 0, 0.24, 0.34)
    )
    if ahead is None or swing is None:
        return None
    main = sign * ahead * room.clock
    side = (1 if chance(rng, 0.5) else -1) * swing / 2 * _triangle_wave(1.5 * room.clock)
    return _Draft(main, side) if axis == 0 else _Draft(side, main)


def _bounce(rng: np.random.Generator, room: Room) -> _Draft | None:
    height = _reach(rng, room, 1, 0.4, 0.6)
    if height is None:
        return None
    hops = uniform(rng, 2.25, 2.4)
    return _Draft(np.zeros(room.frames), -height * np.abs(np.sin(hops * np.pi * room.clock)))


def _shake(rng: np.random.Generator, room: Room) -> _Draft | None:
    width = _reach(rng, room, 0, 0.3, 0.42)
    if width is None:
        return None
    sign = 1 if chance(rng, 0.5) else -1
    swings = uniform(rng, 1.6, 1.9)
    x = sign * width / 2 * np.sin(2 * swings * np.pi * room.clock)
    return _Draft(x, np.zeros(room.frames))


def _broken(progress: Callable[[np.random.Generator, Array], Array]) -> _Builder:
    """A line in one of four directions whose progress is not steady."""

    def build(rng: np.random.Generator, room: Room) -> _Draft | None:
        axis = 0 if chance(rng, 0.65) else 1
        sign = 1 if chance(rng, 0.5) else -1
        extent = _reach(rng, room, axis, 0.4, 0.62)
        if extent is None:
            return None
        return _along(rng, room, axis, sign, extent, progress(rng, room.clock))

    return build


def _until(rng: np.random.Generator, clock: Array) -> Array:
    return np.clip(clock / uniform(rng, 0.42, 0.52), 0, 1)


def _after(rng: np.random.Generator, clock: Array) -> Array:
    return 1 - np.clip((1 - clock) / uniform(rng, 0.42, 0.52), 0, 1)


def _there_and_back(rng: np.random.Generator, clock: Array) -> Array:
    turn = uniform(rng, 0.44, 0.56)
    return np.minimum(clock / turn, (1 - clock) / (1 - turn))


def _border(axis: int, far: bool, entering: bool) -> _Builder:
    """Come in over the left or top border (right or bottom where ``far``), or go out over it."""

    def build(rng: np.random.Generator, room: Room) -> _Draft | None:
        size = (room.width, room.height)[axis]
        inside = max(room.pad(size), size * uniform(rng, 0.45, 0.62))
        if inside > size - room.pad(size):
            return None
        outside = -(room.radius + DRIFT * size + 2)
        wait = uniform(rng, 0.13, 0.2)
        progress = np.clip((room.clock - wait) / (1 - wait), 0, 1)
        main = outside + (inside - outside) * progress
        main = main if entering else main[::-1]
        main = size - main if far else main
        side = _wiggle(rng, room.clock, (room.height, room.width)[axis])
        if axis == 0:
            return _Draft(main, side, fixed=(True, False))
        return _Draft(side, main, fixed=(False, True))

    return build


def _resize(growing: bool) -> _Builder:
    def build(rng: np.random.Generator, room: Room) -> _Draft:
        scales = uniform(rng, 1.68, 1.85) ** (-room.clock)
        still = np.zeros(room.frames)
        return _Draft(still, still, scales[::-1] if growing else scales)

    return build


FAST, SLOW = 0.98, 0.52
"""Length of a fast and of a slow path, in units of three quarters of the frame's longer side."""

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
    "fast": _paced(FAST, 1.1),
    "slow": _paced(0.47, SLOW),
    "clockwise": _circle(1),
    "counterclockwise": _circle(-1),
    "zigzag": _zigzag,
    "bounce": _bounce,
    "shake": _shake,
    "stop": _broken(_until),
    "start": _broken(_after),
    "turn_back": _broken(_there_and_back),
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
"""Every motion that one object can make on its own."""


def _place(rng: np.random.Generator, values: Array, size: int, pad: float) -> Array | None:
    low, high = pad - float(values.min()), size - pad - float(values.max())
    return None if high < low else values + uniform(rng, low, high)


def draw_path(motion: str, rng: np.random.Generator, room: Room) -> Path | None:
    """Draw a path that carries out ``motion`` inside ``room``, or None where it does not fit."""
    draft = _BUILDERS[motion](rng, room)
    if draft is None:
        return None
    x, y = draft.x, draft.y
    if not draft.fixed[0]:
        placed = _place(rng, x, room.width, room.pad(room.width))
        if placed is None:
            return None
        x = placed
    if not draft.fixed[1]:
        placed = _place(rng, y, room.height, room.pad(room.height))
        if placed is None:
            return None
        y = placed
    scales = np.ones(room.frames) if draft.scales is None else draft.scales
    return Path(np.stack([x, y], axis=1), scales)
