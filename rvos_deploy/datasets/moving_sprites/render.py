"""Paint the frames of a video, and the exact visible mask of every object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from rvos_deploy.datasets.moving_sprites.backgrounds import paint_background
from rvos_deploy.datasets.moving_sprites.looks import paint_look
from rvos_deploy.datasets.moving_sprites.world import (
    Array,
    Look,
    Picture,
    SpriteObject,
    SpriteVideo,
)
from rvos_deploy.errors import InputError

Region = tuple[slice, slice]
Masks = npt.NDArray[np.bool_]

_SHADOW = 0.42  # opacity of a sprite's shadow on the background


@dataclass(frozen=True, eq=False)
class Sprite:
    """Hold a painted look, which is composited over a frame as (colour + frame * rest) >> 8.

    colour: uint16 [h, w, 3], RGB times opacity (0 .. 256). rest: uint16 [h, w, 1], 256 minus
    opacity. solid: bool [h, w], the pixels that are at least half opaque, which are the ground
    truth where no other object is in front. area: the number of solid pixels.
    """

    colour: npt.NDArray[np.uint16]
    rest: npt.NDArray[np.uint16]
    solid: Masks
    area: int


@lru_cache(maxsize=512)
def paint_sprite(look: Look, diameter: int) -> Sprite:
    """Paint ``look`` in a box of ``diameter`` pixels, with a shadow around the box.

    The shadow does not belong to the object. Repeated calls return the same arrays. Raises
    InputError: the look is an emoji and no font is installed.
    """
    paint = paint_look(look, diameter)
    pad = max(1, round(diameter * 0.08))
    paint = np.pad(paint, ((pad, pad), (pad, pad), (0, 0)))
    alpha = paint[..., 3].astype(np.float64) / 255
    shifted = np.roll(alpha, (pad + 1) // 2, axis=0)
    shadow = _SHADOW * uniform_filter(
        uniform_filter(shifted, pad, mode="constant"), pad, mode="constant"
    )
    opacity = np.round(256 * alpha).astype(np.uint16)[..., None]
    cover = np.round(256 * (alpha + shadow * (1 - alpha))).astype(np.uint16)[..., None]
    solid = paint[..., 3] >= 128
    return Sprite(
        paint[..., :3] * opacity, 256 - np.maximum(cover, opacity), solid, int(solid.sum())
    )


def place(
    sprite: Sprite, x: float, y: float, height: int, width: int
) -> tuple[Region, Region] | None:
    """Return the overlapping slices of frame and sprite for a sprite centred at (x, y), or None.

    None means that the sprite lies outside the frame of [height, width] pixels.
    """
    tall, wide = sprite.solid.shape
    left, top = round(x - wide / 2), round(y - tall / 2)
    x0, x1 = max(0, left), min(width, left + wide)
    y0, y1 = max(0, top), min(height, top + tall)
    if x0 >= x1 or y0 >= y1:
        return None
    part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    return (slice(y0, y1), slice(x0, x1)), part


def _placed(
    item: SpriteObject, t: int, height: int, width: int
) -> tuple[Sprite, Region, Region] | None:
    sprite = paint_sprite(item.look, int(item.diameters[t]))
    regions = place(sprite, float(item.centres[t, 0]), float(item.centres[t, 1]), height, width)
    return None if regions is None else (sprite, *regions)


def composite(frame: Picture, sprite: Sprite, at: Region, part: Region) -> None:
    """Composite ``part`` of a sprite over the slices ``at`` of ``frame`` [H, W, 3], in place."""
    under = frame[at].astype(np.uint16)
    under *= sprite.rest[part]
    under += sprite.colour[part]
    under >>= 8
    frame[at] = under


def _brighten(frame: Picture, gain: float) -> Picture:
    table: Picture = np.minimum(np.arange(256) * gain, 255).astype(np.uint8)
    return table[frame]


def _paint_frame(video: SpriteVideo, t: int) -> tuple[Picture, Masks]:
    height, width = video.config.height, video.config.width
    x, y = (int(v) for v in video.offsets[t])
    frame = paint_background(video.background)[y : y + height, x : x + width].copy()
    owner = np.zeros((height, width), np.uint8)
    for k, item in enumerate(video.objects):
        placed = _placed(item, t, height, width)
        if placed is not None:
            sprite, at, part = placed
            composite(frame, sprite, at, part)
            owner[at][sprite.solid[part]] = k + 1
    if video.gains[t] != 1:
        frame = _brighten(frame, float(video.gains[t]))
    labels = np.arange(1, len(video.objects) + 1, dtype=np.uint8)
    return frame, owner == labels[:, None, None]


def iterate(
    video: SpriteVideo, indices: Sequence[int] | None = None
) -> Iterator[tuple[Picture, Masks]]:
    """Yield (frame uint8 [H, W, 3], masks bool [K, H, W]) for each of ``indices``, or all frames.

    A mask holds the visible pixels of its object, without pixels that another object covers. Raises
    InputError: an index lies outside the video.
    """
    for t in range(video.config.frames) if indices is None else indices:
        if not 0 <= t < video.config.frames:
            raise InputError(f"frame {t} lies outside the video of {video.config.frames} frames")
        yield _paint_frame(video, t)


def render(video: SpriteVideo, indices: Sequence[int] | None = None) -> tuple[Picture, Masks]:
    """Paint ``indices``, or all frames: uint8 [T, H, W, 3], and visible masks bool [T, K, H, W]."""
    count = video.config.frames if indices is None else len(indices)
    height, width = video.config.height, video.config.width
    frames = np.empty((count, height, width, 3), np.uint8)
    masks = np.empty((count, len(video.objects), height, width), np.bool_)
    for i, (frame, mask) in enumerate(iterate(video, indices)):
        frames[i], masks[i] = frame, mask
    return frames, masks


def visibility(video: SpriteVideo) -> tuple[Array, Array]:
    """Measure how much of each object is visible, without painting colours.

    Returns inside and visible, float64 [K, T] in 0 .. 1: the part of the object's area that lies in
    the frame, and the part that is visible (in the frame and not covered by another object).
    """
    height, width = video.config.height, video.config.width
    shape = len(video.objects), video.config.frames
    inside, visible = np.zeros(shape), np.zeros(shape)
    for t in range(video.config.frames):
        owner = np.zeros((height, width), np.uint8)
        drawn = []
        for k, item in enumerate(video.objects):
            placed = _placed(item, t, height, width)
            if placed is not None:
                sprite, at, region = placed
                part = sprite.solid[region]
                owner[at][part] = k + 1
                inside[k, t] = np.count_nonzero(part) / sprite.area
                drawn.append((k, at, sprite.area))
        for k, at, area in drawn:
            visible[k, t] = np.count_nonzero(owner[at] == k + 1) / area
    return inside, visible
