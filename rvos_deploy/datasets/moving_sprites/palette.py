"""Looks: colours, textures, the combinations kept for validation, and the painting of a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from rvos_deploy.datasets.moving_sprites.shapes import SHAPES, distance_field

Split = Literal["train", "valid"]
Texture = Literal["plain", "striped", "dotted"]

SPLITS: tuple[Split, ...] = ("train", "valid")
TEXTURES: tuple[Texture, ...] = ("plain", "striped", "dotted")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 32),
    "orange": (255, 136, 0),
    "yellow": (250, 226, 30),
    "green": (34, 166, 54),
    "cyan": (40, 214, 226),
    "blue": (30, 76, 226),
    "purple": (132, 36, 186),
    "pink": (255, 120, 190),
    "white": (246, 246, 246),
}


def _held_out() -> frozenset[tuple[str, str]]:
    # A diagonal of the table: every colour and every shape keeps most of its partners in training.
    return frozenset(
        (colour, shape)
        for i, colour in enumerate(COLOURS)
        for j, shape in enumerate(SHAPES)
        if (i * 3 + j) % 7 == 0
    )


HELD_OUT: frozenset[tuple[str, str]] = _held_out()
"""(colour, shape) pairs that never occur in training, neither drawn nor named."""


def combination_allowed(split: Split, colour: str | None, name: str | None) -> bool:
    """Tell whether ``split`` may draw or name this colour and shape together."""
    return split == "valid" or colour is None or name is None or (colour, name) not in HELD_OUT


@dataclass(frozen=True)
class Look:
    """What an object looks like, size apart.

    name: a shape, or an emoji's plain name (then colour is None). tint: -1 .. 1, a slight change of
    the colour. degrees: clockwise turn of a shape.
    """

    name: str
    colour: str | None
    texture: Texture = "plain"
    tint: float = 0.0
    degrees: int = 0

    @property
    def is_emoji(self) -> bool:
        """True for an emoji, False for a shape."""
        return self.colour is None

    def resembles(self, other: Look) -> bool:
        """Tell whether words could not tell the two apart: same name, colour and texture."""
        mine, theirs = (
            (self.name, self.colour, self.texture),
            (other.name, other.colour, other.texture),
        )
        return mine == theirs


def _pattern(
    texture: Texture, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return how much of the second colour each pixel takes, 0 .. 1."""
    if texture == "striped":
        return np.clip(0.5 + 2.2 * np.sin((u + v) * 2 * np.pi / 0.86), 0, 1)
    if texture == "dotted":
        row = np.round(v / 0.46)
        x = (u / 0.54 + 0.5 * (row % 2)) % 1 - 0.5
        return np.clip((0.17 - np.hypot(x * 0.54, v - row * 0.46)) * 14 + 0.5, 0, 1)
    return np.zeros_like(u)


def paint_shape(look: Look, diameter: int) -> npt.NDArray[np.uint8]:
    """Paint a shape: uint8 [diameter, diameter, 4], RGB with straight alpha."""
    distance, u, v = distance_field(look.name, diameter, look.degrees)
    base = np.array(COLOURS[look.colour or "white"], np.float64)
    base = np.clip(base * (1 + 0.05 * look.tint) + 6 * look.tint, 0, 255)
    light = base @ (0.299, 0.587, 0.114) > 170
    second = base * 0.42 if light else base * 0.25 + 255 * 0.75
    blend = _pattern(look.texture, u, v)[..., None]
    rgb = base * (1 - blend) + second * blend
    rgb = rgb * (1 - 0.14 * (0.4 * u + v))[..., None]  # light from above
    width = max(1.2, diameter / 26)
    inner = np.clip(0.5 - (distance + width), 0, 1)[..., None]
    rgb = base * 0.3 * (1 - inner) + rgb * inner
    alpha = np.clip(0.5 - distance, 0, 1)[..., None] * 255
    paint: npt.NDArray[np.uint8] = (
        np.concatenate([np.clip(rgb, 0, 255), alpha], axis=2).round().astype(np.uint8)
    )
    return paint
