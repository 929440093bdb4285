"""Draw and paint backgrounds.

A background is larger than the frame and is painted once per video. The frame is a window that
moves over the background.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rvos_deploy.datasets.moving_sprites.rng import below, chance, pick, stream, uniform
from rvos_deploy.datasets.moving_sprites.world import Array, Background, Picture, Split
from rvos_deploy.errors import InputError
from rvos_deploy.images import read_image

_SHORT_SIDE = 192  # procedural backgrounds are computed with at most this short side
_PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def _enlarge(field: Array, height: int, width: int) -> Array:
    image = Image.fromarray(field.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int, octaves: int) -> Array:
    """Return fractal value noise of about 0 .. 1; octave 0 has ``cells`` across the short side."""
    total = np.zeros((height, width))
    weight = 1.0
    for octave in range(octaves):
        step = min(height, width) / (cells * 2**octave)
        if step < 1.5:
            break
        grid = rng.random((int(height / step) + 3, int(width / step) + 3))
        total += weight * (_enlarge(grid, height, width) - 0.5)
        weight *= 0.55
    return 0.5 + total


def _axes(height: int, width: int) -> tuple[Array, Array]:
    short = min(height, width)
    return np.arange(width)[None, :] / short, np.arange(height)[:, None] / short


def _ramp(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    turn = uniform(rng, 0, 2 * np.pi)
    ramp = x * np.cos(turn) + y * np.sin(turn)
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    shaded: Array = ramp + 0.2 * (_clouds(rng, height, width, 3, 3) - 0.5)
    return shaded


def _noise(rng: np.random.Generator, height: int, width: int) -> Array:
    return _clouds(rng, height, width, 2 + below(rng, 3), 5)


def _stripes(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    turn, period = uniform(rng, 0, np.pi), uniform(rng, 0.16, 0.4)
    bend = 0.12 * (_clouds(rng, height, width, 2, 2) - 0.5)
    wave = np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn) + bend) / period)
    stripes: Array = np.clip(0.5 + wave * 1.4, 0, 1)
    return 0.55 * stripes + 0.45 * _clouds(rng, height, width, 4, 4)


def _plasma(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    total = np.zeros((height, width))
    for _ in range(4):
        turn, rate = uniform(rng, 0, np.pi), uniform(rng, 3, 11)
        total += np.sin((x * np.cos(turn) + y * np.sin(turn)) * rate + uniform(rng, 0, 6.3))
    return 0.5 + total / 6


def _glow(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    distance = np.hypot(x - uniform(rng, 0.2, 1.4), y - uniform(rng, 0.1, 0.9))
    return 1 - distance / 1.3 + 0.25 * (_clouds(rng, height, width, 4, 3) - 0.5)


def _checks(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    turn, period = uniform(rng, -0.5, 0.5), uniform(rng, 0.2, 0.42)
    u = np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / period)
    v = np.sin(2 * np.pi * (y * np.cos(turn) - x * np.sin(turn)) / period)
    board: Array = np.clip(0.5 + u * v * 5, 0, 1)
    return 0.45 * board + 0.55 * _clouds(rng, height, width, 3, 4)


def _marble(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    turn = uniform(rng, 0, np.pi)
    veins = (x * np.cos(turn) + y * np.sin(turn)) * uniform(rng, 3, 6)
    wave: Array = np.sin(veins + 7 * _clouds(rng, height, width, 2, 4))
    return 0.5 + 0.5 * wave


def _cells(rng: np.random.Generator, height: int, width: int) -> Array:
    x, y = _axes(height, width)
    points, tones = rng.random((26, 2)), rng.random(26)
    nearest = np.full((height, width), np.inf)
    tone = np.zeros((height, width))
    for (px, py), value in zip(points, tones, strict=True):
        distance = (x - px * x.max()) ** 2 + (y - py * y.max()) ** 2
        closer = distance < nearest
        nearest[closer] = distance[closer]
        tone[closer] = value
    return 0.75 * tone + 0.25 * _clouds(rng, height, width, 4, 4)


_PAINTERS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "noise": _noise,
    "ramp": _ramp,
    "stripes": _stripes,
    "plasma": _plasma,
    "glow": _glow,
    "checks": _checks,
    "marble": _marble,
    "cells": _cells,
}
FAMILIES: dict[Split, tuple[str, ...]] = {
    "train": ("noise", "ramp", "stripes", "plasma", "cells"),
    "valid": ("noise", "glow", "checks", "marble"),
}
"""Families of each split. Both have ``noise``, in different colours (``_draw_colours``)."""


def _draw_colours(rng: np.random.Generator, split: Split) -> Array:
    """Draw two muted colours, float64 [2, 3] in 0 .. 255, so that the vivid objects stand out."""
    hue = uniform(rng, 0, 1)
    turn = uniform(rng, -0.12, 0.12) if split == "train" else uniform(rng, 0.2, 0.5)
    values = [uniform(rng, 0.3, 0.48), uniform(rng, 0.52, 0.74)]
    hues = [hue, hue + turn]
    rows = []
    for shade, value in zip(hues, values, strict=True):
        saturation = uniform(rng, 0.05, 0.4)
        wheel = np.abs((shade + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
        rows.append(255 * value * (1 - saturation + saturation * np.clip(wheel, 0, 1)))
    return np.array(rows)


@lru_cache(maxsize=4)
def list_photos(folder: str) -> tuple[str, ...]:
    """Return the photographs in ``folder``, sorted. Raises InputError: the folder has none."""
    root = Path(folder)
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in _PHOTO_SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no photograph ({', '.join(sorted(_PHOTO_SUFFIXES))})")
    return tuple(str(p) for p in found)


def draw_background(
    rng: np.random.Generator, split: Split, height: int, width: int, photos: str | None
) -> Background:
    """Draw the description of a background of [height, width] pixels.

    If the folder ``photos`` holds at least five photographs, every fifth is kept for validation.
    Raises InputError: the folder has no photographs.
    """
    key = (below(rng, 2**31), below(rng, 2**31))
    family = pick(rng, FAMILIES[split])
    if photos is not None:
        files = list_photos(photos)
        if len(files) >= 5:
            files = tuple(f for i, f in enumerate(files) if (i % 5 == 0) == (split == "valid"))
        photo = pick(rng, files)
        if chance(rng, 0.7):
            return Background("photo", key, height, width, split, photo)
    return Background(family, key, height, width, split)


def _photo(background: Background, rng: np.random.Generator) -> Picture:
    if background.photo is None:
        raise InputError("a background of family 'photo' needs a photo")
    image = read_image(Path(background.photo)).convert("RGB")
    size, centre = (background.width, background.height), (uniform(rng, 0, 1), uniform(rng, 0, 1))
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=centre))


@lru_cache(maxsize=8)
def paint_background(background: Background) -> Picture:
    """Paint a background: uint8 [height, width, 3], read-only.

    Raises InputError: the photograph cannot be read.
    """
    rng = stream(*background.key)
    if background.family == "photo":
        canvas: Picture = _photo(background, rng).copy()
    else:
        scale = min(1.0, _SHORT_SIDE / min(background.height, background.width))
        height, width = round(background.height * scale), round(background.width * scale)
        colours = _draw_colours(rng, background.split)
        field = np.clip(_PAINTERS[background.family](rng, height, width), 0, 1)[..., None]
        grain = 10 * (rng.random((height, width, 1)) - 0.5)
        mixed = colours[0] + (colours[1] - colours[0]) * field + grain
        canvas = np.clip(mixed, 0, 255).astype(np.uint8)
        if scale < 1:
            size = (background.width, background.height)
            canvas = np.array(Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC))
    canvas.setflags(write=False)
    return canvas
