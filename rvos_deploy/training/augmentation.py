"""Augment a clip: scale, crop, and mirror, with left and right swapped in its text."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.training.recipe import Augmentation

_TRIES = 10
_SWAPPED = {
    "left": "right",
    "leftmost": "rightmost",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "lefthand": "righthand",
    "clockwise": "counterclockwise",
}
_SWAPPED |= {mirrored: word for word, mirrored in _SWAPPED.items()}
_SWAPPED |= dict.fromkeys(
    ("counter-clockwise", "counter clockwise", "anticlockwise", "anti-clockwise"), "clockwise"
)
_WORDS = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, _SWAPPED), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)


class Pictures(NamedTuple):
    """Hold frames uint8 [T,H,W,3] and masks bool [K,T,H,W]."""

    frames: NDArray[np.uint8]
    masks: NDArray[np.bool_]


def mirror_text(text: str) -> str:
    """Swap left and right, clockwise and counterclockwise; initial capitals stay."""

    def swap(match: re.Match[str]) -> str:
        word = _SWAPPED[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    return _WORDS.sub(swap, text)


def mirror(pictures: Pictures) -> Pictures:
    """Mirror frames and masks, left to right."""
    return Pictures(pictures.frames[:, :, ::-1], pictures.masks[..., ::-1])


def crop(
    pictures: Pictures, referred: NDArray[np.bool_], least: float, rng: np.random.Generator
) -> Pictures:
    """Cut one random box out of all frames, so that every referred object stays visible.

    If ten boxes each lose all pixels of a referred object, the clip stays whole.

    Args:
        pictures: the clip.
        referred: bool [K], the referred objects.
        least: smallest share of each side that the box keeps, 0 to 1.
        rng: random stream.
    """
    height, width = pictures.frames.shape[1:3]
    for _ in range(_TRIES):
        tall, wide = (round(side * rng.uniform(least, 1)) for side in (height, width))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        box = (slice(top, top + tall), slice(left, left + wide))
        masks = pictures.masks[:, :, box[0], box[1]]
        before = pictures.masks[referred].any(axis=(1, 2, 3))
        if (masks[referred].any(axis=(1, 2, 3)) == before).all():
            return Pictures(pictures.frames[:, box[0], box[1]], masks)
    return pictures


def resize(pictures: Pictures, short: int, longest: int) -> Pictures:
    """Scale to a short side of ``short`` pixels, and a long side of at most ``longest``."""
    height, width = pictures.frames.shape[1:3]
    size = resized_size(height, width, short, longest)
    if size == (height, width):
        return pictures
    frames = np.stack([_resized(frame, size) for frame in pictures.frames])
    objects, length = pictures.masks.shape[:2]
    flat = pictures.masks.reshape(-1, height, width).astype(np.uint8) * 255
    masks = np.zeros((len(flat), *size), np.bool_)
    for row, mask in enumerate(flat):
        if mask.any():
            masks[row] = _resized(mask, size) >= 128
    return Pictures(frames, masks.reshape(objects, length, *size))


def resized_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return the height and width in pixels after :func:`resize`."""
    scale = min(short / min(height, width), longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    scaled = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(scaled)


def augment(
    pictures: Pictures,
    text: str,
    referred: NDArray[np.bool_],
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[Pictures, str]:
    """Crop, resize and mirror a clip by the settings of the recipe."""
    if rng.random() < settings.crop:
        pictures = crop(pictures, referred, settings.crop_side, rng)
    pictures = resize(pictures, int(rng.choice(settings.short_sides)), settings.long_side)
    if rng.random() < settings.flip:
        pictures, text = mirror(pictures), mirror_text(text)
    return pictures, text
