"""The shapes, as signed distances: negative inside, in units of half the sprite's width.

Distances rather than rasters, because one formula then gives antialiased edges and outlines at
every size, with no supersampling. Method: https://iquilezles.org/articles/distfunctions2d/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Point = tuple[float, float]


def _circle(x: Array, y: Array, cx: float, cy: float, radius: float) -> Array:
    return np.hypot(x - cx, y - cy) - radius


def _polygon(x: Array, y: Array, corners: Sequence[Point]) -> Array:
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        if ey:
            inside ^= ((ay > y) != (by > y)) & (wx < ex * wy / ey)
    distance = np.sqrt(nearest)
    signed: Array = np.where(inside, -distance, distance)
    return signed


def _regular(count: int, radius: float, turn: float, inner: float | None = None) -> list[Point]:
    """Corners of a regular polygon, or of a star with notches at radius ``inner``."""
    radii = [radius] if inner is None else [radius, inner]
    steps = count * len(radii)
    angles = [turn + 2 * np.pi * i / steps for i in range(steps)]
    return [
        (radii[i % len(radii)] * float(np.cos(a)), radii[i % len(radii)] * float(np.sin(a)))
        for i, a in enumerate(angles)
    ]


_UP = -np.pi / 2
_STAR = [(x, y + 0.06) for x, y in _regular(5, 1.02, _UP, 0.5)]
_TRIANGLE = [(0.0, -0.92), (1.0, 0.82), (-1.0, 0.82)]
_DIAMOND = [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)]
_ARROW = [
    (1.0, 0.0),
    (0.1, -0.88),
    (0.1, -0.4),
    (-0.98, -0.4),
    (-0.98, 0.4),
    (0.1, 0.4),
    (0.1, 0.88),
]
_BOLT = [
    (0.3, -1.0),
    (-0.86, 0.24),
    (-0.14, 0.24),
    (-0.42, 1.0),
    (0.86, -0.36),
    (0.12, -0.36),
    (0.76, -1.0),
]
_ARM = 0.36
_CROSS = [
    (-_ARM, -0.96), (_ARM, -0.96), (_ARM, -_ARM), (0.96, -_ARM), (0.96, _ARM), (_ARM, _ARM),
    (_ARM, 0.96), (-_ARM, 0.96), (-_ARM, _ARM), (-0.96, _ARM), (-0.96, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip


def _heart(x: Array, y: Array) -> Array:
    lobes = np.minimum(_circle(x, y, -0.47, -0.36, 0.52), _circle(x, y, 0.47, -0.36, 0.52))
    tip = _polygon(x, y, [(-0.86, -0.02), (0.0, -0.36), (0.86, -0.02), (0.0, 0.96)])
    return np.minimum(lobes, tip)


def _flower(x: Array, y: Array) -> Array:
    petals = _circle(x, y, 0, 0, 0.5)
    for cx, cy in _regular(5, 0.58, _UP):
        petals = np.minimum(petals, _circle(x, y, cx, cy, 0.4))
    return petals


def _drop(x: Array, y: Array) -> Array:
    tip = _polygon(x, y, [(0.0, -1.0), (0.68, 0.02), (-0.68, 0.02)])
    return np.minimum(_circle(x, y, 0, 0.25, 0.74), tip)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: _circle(x, y, 0, 0, 0.96),
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.86,
    "triangle": lambda x, y: _polygon(x, y, _TRIANGLE),
    "star": lambda x, y: _polygon(x, y, _STAR),
    "cross": lambda x, y: _polygon(x, y, _CROSS),
    "diamond": lambda x, y: _polygon(x, y, _DIAMOND),
    "heart": _heart,
    "ring": lambda x, y: np.abs(_circle(x, y, 0, 0, 0.7)) - 0.27,
    "hexagon": lambda x, y: _polygon(x, y, _regular(6, 0.98, 0.0)),
    "arrow": lambda x, y: _polygon(x, y, _ARROW),
    "crescent": lambda x, y: np.maximum(
        _circle(x, y, 0.06, 0, 0.98), -_circle(x, y, 0.62, -0.12, 0.78)
    ),
    "drop": _drop,
    "flower": _flower,
    "bolt": lambda x, y: _polygon(x, y, _BOLT),
}

# Thin shapes are drawn in a larger box, so that every object of one size covers a similar area.
STRETCH = {
    "star": 1.12,
    "cross": 1.06,
    "diamond": 1.14,
    "ring": 1.04,
    "arrow": 1.1,
    "crescent": 1.12,
    "drop": 1.12,
    "bolt": 1.2,
    "triangle": 1.06,
}


def distance_field(shape: str, diameter: int, degrees: float) -> tuple[Array, Array, Array]:
    """Signed distance of ``shape`` on a square of ``diameter`` pixels, turned clockwise by
    ``degrees``.

    Returns distance, u and v, each float64 [diameter, diameter]: distance in pixels, u and v the
    shape's own coordinates in -1 .. 1 (v downwards).
    """
    axis = (np.arange(diameter) + 0.5) * (2 / diameter) - 1
    x, y = np.meshgrid(axis, axis)
    turn = np.deg2rad(degrees)
    # A turned shape would reach out of its box; it is drawn smaller by at most this much.
    shrink = 1 + 0.16 * abs(float(np.sin(2 * turn)))
    u = (x * np.cos(turn) + y * np.sin(turn)) * shrink
    v = (y * np.cos(turn) - x * np.sin(turn)) * shrink
    return SHAPES[shape](u, v) * (diameter / 2 / shrink), u, v
