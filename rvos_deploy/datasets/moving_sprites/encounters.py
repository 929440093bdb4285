"""Paths that only mean something beside another object: towards it, away from it, past it."""

from __future__ import annotations

import numpy as np

from rvos_deploy.datasets.moving_sprites.arena import Array, Path, Room
from rvos_deploy.datasets.moving_sprites.rng import chance, uniform
from rvos_deploy.datasets.moving_sprites.trajectories import eased


def draw_approach(
    rng: np.random.Generator, room: Room, goal: Array, gap: float, away: bool
) -> Path | None:
    """Draw a straight path towards ``goal`` (x, y), ending ``gap`` pixels from it; reversed for
    ``away``.
    """
    least = 0.42 * max(room.width, room.height) + gap
    for _ in range(12):
        x = uniform(rng, room.pad(room.width), room.width - room.pad(room.width))
        y = uniform(rng, room.pad(room.height), room.height - room.pad(room.height))
        apart = float(np.hypot(x - goal[0], y - goal[1]))
        if apart < least:
            continue
        progress = eased(rng, room.clock)[:, None] * (1 - gap / apart)
        start = np.array([x, y])
        centres = start + (goal - start) * progress
        return Path(centres[::-1] if away else centres, np.ones(room.frames))
    return None


def draw_overtaking(rng: np.random.Generator, room: Room, reach: float) -> tuple[Path, Path] | None:
    """Draw two paths in the same horizontal direction; the first overtakes the second.

    ``reach``: how far apart their lanes are, at least, in pixels.
    """
    width, pad = room.width, room.pad(room.width)
    fast = min(uniform(rng, 0.7, 0.8), room.free(width)) * width
    slow, lead = uniform(rng, 0.32, 0.36) * width, uniform(rng, 0.14, 0.18) * width
    low, high = room.pad(room.height), room.height - room.pad(room.height)
    if fast < 0.66 * width or high - low < reach:
        return None
    lane = uniform(rng, low, high - reach)
    other = uniform(rng, lane + reach, high)
    lanes = (lane, other) if chance(rng, 0.5) else (other, lane)
    start = uniform(rng, pad, width - pad - fast)
    xs = [start + fast * room.clock, start + lead + slow * room.clock]
    if chance(rng, 0.5):
        xs = [width - x for x in xs]
    ones = np.ones(room.frames)
    first, second = (
        Path(np.stack([x, np.full(room.frames, y)], axis=1), ones)
        for x, y in zip(xs, lanes, strict=True)
    )
    return first, second
