"""Draw and paint the looks of objects: shapes, colours, textures and emoji.

Shapes are signed distance functions: negative inside, in units of half the sprite's width. So one
formula draws antialiased edges and outlines at every size, without supersampling. Method:
https://iquilezles.org/articles/distfunctions2d/. Emoji come from a font of the system; nothing is
downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rvos_deploy.datasets.moving_sprites.rng import below, between, chance, pick, weighted
from rvos_deploy.datasets.moving_sprites.world import TEXTURES, Array, Look, Picture, Split, Texture
from rvos_deploy.errors import InputError

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
    """Return the corners of a regular polygon, or of a star with notches at radius ``inner``."""
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
    (1.0, 0.0), (0.1, -0.88), (0.1, -0.4), (-0.98, -0.4), (-0.98, 0.4), (0.1, 0.4), (0.1, 0.88),
]  # fmt: skip
_BOLT = [
    (0.3, -1.0), (-0.86, 0.24), (-0.14, 0.24), (-0.42, 1.0), (0.86, -0.36), (0.12, -0.36),
    (0.76, -1.0),
]  # fmt: skip
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
"""Signed distance to each shape at x, y (y downwards), in units of half the sprite's width."""

STRETCH = {
    "star": 1.12, "cross": 1.06, "diamond": 1.14, "ring": 1.04, "arrow": 1.1, "crescent": 1.12,
    "drop": 1.12, "bolt": 1.2, "triangle": 1.06,
}  # fmt: skip
"""Enlargement of thin shapes, so that objects of one size cover similar areas."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 32), "orange": (255, 136, 0), "yellow": (250, 226, 30),
    "green": (34, 166, 54), "cyan": (40, 214, 226), "blue": (30, 76, 226),
    "purple": (132, 36, 186), "pink": (255, 120, 190), "white": (246, 246, 246),
}  # fmt: skip

# The pairs lie on a diagonal of the table, so every colour and shape keeps most of its partners.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    (colour, shape)
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    if (i * 3 + j) % 7 == 0
)
"""(colour, shape) pairs that training neither draws nor names."""

# No emoji has the name of a shape.
EMOJI: dict[str, str] = {
    "dog": "\U0001f436", "cat": "\U0001f431", "pig": "\U0001f437", "frog": "\U0001f438",
    "rabbit": "\U0001f430", "bear": "\U0001f43b", "panda": "\U0001f43c", "fox": "\U0001f98a",
    "monkey": "\U0001f435", "lion": "\U0001f981", "turtle": "\U0001f422", "fish": "\U0001f41f",
    "butterfly": "\U0001f98b", "ladybug": "\U0001f41e", "octopus": "\U0001f419",
    "crab": "\U0001f980", "penguin": "\U0001f427", "car": "\U0001f697", "bus": "\U0001f68c",
    "bicycle": "\U0001f6b2", "rocket": "\U0001f680", "sailboat": "\u26f5",
    "helicopter": "\U0001f681", "basketball": "\U0001f3c0", "apple": "\U0001f34e",
    "banana": "\U0001f34c", "strawberry": "\U0001f353", "pizza": "\U0001f355",
    "donut": "\U0001f369", "balloon": "\U0001f388", "tree": "\U0001f333",
    "umbrella": "\u2602\ufe0f", "robot": "\U0001f916", "ghost": "\U0001f47b",
    "mushroom": "\U0001f344", "clock": "\u23f0",
}  # fmt: skip


def combination_allowed(split: Split, colour: str | None, name: str | None) -> bool:
    """Tell whether ``split`` may draw or name this colour and shape together."""
    return split == "valid" or colour is None or name is None or (colour, name) not in HELD_OUT


def draw_look(
    rng: np.random.Generator, split: Split, emoji: bool, like: Look | None = None
) -> Look:
    """Draw a look that ``split`` allows; it often shares the shape or colour of ``like``."""
    if emoji and chance(rng, 0.3):
        return Look(pick(rng, tuple(EMOJI)), None)
    degrees, tint = 4 * between(rng, -3, 3), below(rng, 5) / 2 - 1
    if split == "valid" and chance(rng, 0.4):
        colour, name = pick(rng, sorted(HELD_OUT))
        return Look(name, colour, weighted(rng, TEXTURES, (0.55, 0.25, 0.2)), tint, degrees)
    while True:
        name, colour = pick(rng, tuple(SHAPES)), pick(rng, tuple(COLOURS))
        texture = weighted(rng, TEXTURES, (0.55, 0.25, 0.2))
        if like is not None and not like.is_emoji:
            shared = below(rng, 3)
            name = like.name if shared == 0 else name
            colour = (like.colour or colour) if shared == 1 else colour
        if combination_allowed(split, colour, name):
            return Look(name, colour, texture, tint, degrees)


def _distance_field(shape: str, diameter: int, degrees: float) -> tuple[Array, Array, Array]:
    """Compute the signed distance to a shape that is rotated clockwise by ``degrees``.

    Returns distance, u and v, each float64 [diameter, diameter]: the distance in pixels, and
    coordinates in the shape's own frame, -1 .. 1 (v downwards).
    """
    axis = (np.arange(diameter) + 0.5) * (2 / diameter) - 1
    x, y = np.meshgrid(axis, axis)
    turn = np.deg2rad(degrees)
    # A rotated shape is drawn smaller, because it would leave its box.
    shrink = 1 + 0.16 * abs(float(np.sin(2 * turn)))
    u = (x * np.cos(turn) + y * np.sin(turn)) * shrink
    v = (y * np.cos(turn) - x * np.sin(turn)) * shrink
    return SHAPES[shape](u, v) * (diameter / 2 / shrink), u, v


def _pattern(texture: Texture, u: Array, v: Array) -> Array:
    """Return the share of the second colour in each pixel, 0 .. 1."""
    if texture == "striped":
        return np.clip(0.5 + 2.2 * np.sin((u + v) * 2 * np.pi / 0.86), 0, 1)
    if texture == "dotted":
        row = np.round(v / 0.46)
        x = (u / 0.54 + 0.5 * (row % 2)) % 1 - 0.5
        return np.clip((0.17 - np.hypot(x * 0.54, v - row * 0.46)) * 14 + 0.5, 0, 1)
    return np.zeros_like(u)


def paint_shape(look: Look, diameter: int) -> Picture:
    """Paint a shape: uint8 [diameter, diameter, 4], RGB with straight alpha."""
    distance, u, v = _distance_field(look.name, diameter, look.degrees)
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
    paint: Picture = np.concatenate([np.clip(rgb, 0, 255), alpha], axis=2).round().astype(np.uint8)
    return paint


_FONT_FILE = "NotoColorEmoji.ttf"
_FONT_SIZE = 109  # the only size of the font's bitmaps; FreeType refuses any other


@lru_cache(maxsize=1)
def find_font() -> Path | None:
    """Return the colour emoji font, or None. Searches the same folders as fontconfig."""
    home = Path.home()
    own = os.environ.get("XDG_DATA_HOME") or str(home / ".local/share")
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    roots = [Path(part) / "fonts" for part in f"{shared}:{own}".split(":") if part]
    roots += [home / ".fonts", Path("/Library/Fonts"), home / "Library/Fonts"]
    for root in roots:
        found = sorted(root.rglob(_FONT_FILE)) if root.is_dir() else []
        for path in found:
            if _can_draw(path):
                return path
    return None


def require_font() -> Path:
    """Return the colour emoji font.

    Raises:
        InputError: no font that Pillow can draw is installed.
    """
    font = find_font()
    if font is None:
        raise InputError(
            f"emoji need the font {_FONT_FILE} with bitmaps, which was not found; install it "
            "(Debian: apt-get install fonts-noto-color-emoji), or leave emoji out (no --emoji; in "
            "a recipe, emoji = false)"
        )
    return font


def _can_draw(path: Path) -> bool:
    # Newer packages may hold a vector font (COLRv1) of the same name, which Pillow cannot draw.
    try:
        return bool(np.asarray(_glyph(path, EMOJI["dog"]))[..., 3].max() > 0)
    except OSError:
        return False


def _glyph(path: Path, text: str) -> Image.Image:
    font = ImageFont.truetype(str(path), _FONT_SIZE)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((10, 10), text, font=font, embedded_color=True)
    return canvas


@lru_cache(maxsize=64)
def _cropped_glyph(name: str) -> Image.Image:
    glyph = _glyph(require_font(), EMOJI[name])
    return glyph.crop(glyph.getbbox())


def paint_emoji(name: str, diameter: int) -> Picture:
    """Paint an emoji whose longer side fills the square: uint8 [diameter, diameter, 4].

    The colours are RGB with straight alpha. Raises the errors of ``require_font``.
    """
    glyph = _cropped_glyph(name)
    scale = diameter / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    small = glyph.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (diameter, diameter), (0, 0, 0, 0))
    square.paste(small, ((diameter - size[0]) // 2, (diameter - size[1]) // 2))
    return np.asarray(square)


def paint_look(look: Look, diameter: int) -> Picture:
    """Paint a shape or an emoji: uint8 [diameter, diameter, 4], RGB with straight alpha."""
    return paint_emoji(look.name, diameter) if look.is_emoji else paint_shape(look, diameter)
