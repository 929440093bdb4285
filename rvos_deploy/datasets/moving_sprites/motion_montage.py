"""Motion in one picture: a film strip (frames in reading order) or a trail of ghosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.arena import Path, Room
from rvos_deploy.datasets.moving_sprites.backgrounds import draw_background, paint_background
from rvos_deploy.datasets.moving_sprites.palette import SPLITS, Look, Split
from rvos_deploy.datasets.moving_sprites.render import Sprite, paint_over, paint_sprite, place
from rvos_deploy.datasets.moving_sprites.rng import below, pick, stream, uniform, weighted
from rvos_deploy.datasets.moving_sprites.scenes import draw_look
from rvos_deploy.datasets.moving_sprites.trajectories import MOTIONS, draw_path

Picture = npt.NDArray[np.uint8]
Layout = Literal["stack", "row", "grid", "trail"]

DIRECTIONS = ("left", "right", "up", "down", "up_left", "up_right", "down_left", "down_right")
CURVES = ("clockwise", "counterclockwise", "zigzag")
RESIZES = ("grow", "shrink")
# Two moments cannot tell a stop from a turn, nor a trail what came when on the same way.
SHOWS: dict[Layout, tuple[str, ...]] = {
    "stack": DIRECTIONS + RESIZES,
    "row": DIRECTIONS + RESIZES,
    "trail": DIRECTIONS + CURVES,
    "grid": tuple(motion for motion in MOTIONS if motion not in ("fast", "slow")),
}
"""The motions that a person can read off each layout."""

_CANVASES = 96  # backgrounds of each size, painted once; a picture takes a random window of one
_GHOSTS = 7


@lru_cache(maxsize=2 * _CANVASES)
def _canvas(split: Split, number: int, side: int) -> Picture:
    rng = stream(SPLITS.index(split), number, 77)
    return paint_background(draw_background(rng, split, side, side, None))


def backdrop(rng: np.random.Generator, split: Split, height: int, width: int) -> Picture:
    """Draw a background to paint on: uint8 [height, width, 3]."""
    side = max(height, width) * 3 // 2
    canvas = _canvas(split, below(rng, _CANVASES), side)
    y, x = below(rng, side - height + 1), below(rng, side - width + 1)
    window: Picture = canvas[y : y + height, x : x + width].copy()
    return window


def lay(
    picture: Picture, look: Look, diameter: float, x: float, y: float, opacity: float = 1.0
) -> None:
    """Lay an object over ``picture`` [H, W, 3], in place, its middle at (x, y), in pixels."""
    sprite = paint_sprite(look, max(4, round(diameter)))
    if opacity < 1:
        rest = 256 - np.round((256 - sprite.rest) * opacity).astype(np.uint16)
        faint = np.floor(sprite.colour * opacity).astype(np.uint16)
        sprite = Sprite(faint, rest, sprite.solid, sprite.area)
    regions = place(sprite, x, y, *picture.shape[:2])
    if regions is not None:
        paint_over(picture, sprite, *regions)


@dataclass(frozen=True, eq=False)
class Film:
    """One object's motion, to be shown in a picture. back: uint8 [h, w, 3], a panel's ground."""

    motion: str
    look: Look
    path: Path
    diameter: float
    back: Picture
    layout: Layout

    def picture(self, size: int, backwards: bool = False) -> Picture:
        """Return the film as one picture, uint8 [size, size, 3]."""
        if self.layout == "trail":
            picture: Picture = self.back.copy()
            for i in range(_GHOSTS):
                moment = i / (_GHOSTS - 1)
                self._lay(picture, 1 - moment if backwards else moment, 0.12 + 0.88 * moment**1.6)
            return picture
        rows, columns = {"stack": (2, 1), "row": (1, 2), "grid": (2, 2)}[self.layout]
        tall, wide = self.back.shape[:2]
        picture = np.full((size, size, 3), 235, np.uint8)
        for i in range(rows * columns):
            moment = i / (rows * columns - 1)
            panel = self.back.copy()
            self._lay(panel, 1 - moment if backwards else moment, 1.0)
            top, left = (i // columns) * (size - tall), (i % columns) * (size - wide)
            picture[top : top + tall, left : left + wide] = panel
        return picture

    def _lay(self, picture: Picture, moment: float, opacity: float) -> None:
        t = round(moment * (len(self.path.scales) - 1))
        x, y = self.path.centres[t].tolist()
        lay(picture, self.look, self.diameter * float(self.path.scales[t]), x, y, opacity)


def draw_film(
    rng: np.random.Generator, size: int, split: Split, emoji: bool, motions: Sequence[str]
) -> Film:
    """Draw a film of one of ``motions`` for a picture of ``size`` x ``size`` pixels."""
    layout: Layout = weighted(rng, ("stack", "row", "grid", "trail"), (0.2, 0.15, 0.4, 0.25))
    half = (size - max(2, size // 32)) // 2
    height = half if layout in ("stack", "grid") else size
    width = half if layout in ("row", "grid") else size
    shown = [motion for motion in motions if motion in SHOWS[layout]]
    while True:
        motion = pick(rng, shown)
        share = uniform(rng, 0.22, 0.3) if layout == "trail" else uniform(rng, 0.26, 0.36)
        diameter = min(height, width) * share * (1.6 if motion in RESIZES else 1.0)
        path = draw_path(motion, rng, Room(width, height, 25, diameter / 2))
        if path is not None:
            look = draw_look(rng, split, emoji)
            return Film(motion, look, path, diameter, backdrop(rng, split, height, width), layout)
