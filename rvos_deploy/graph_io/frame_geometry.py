"""Resize frames to the network's input, and upsample its mask logits to the displayed size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.graph_io.resampling import AxisWeights, bilinear_weights, fixed_point

MASK_STRIDE = 4
PADDING = (122, 116, 104)
"""CLIP's mean colour: padding is close to zero after normalisation."""


_ANY_LENGTH = 1 << 40


@dataclass(frozen=True)
class FrameGeometry:
    """Hold the sizes (height, width) of a frame: displayed, resized for the network, and padded."""

    display: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]


def letterbox(
    display: tuple[int, int], box: tuple[int, int], *, fixed: bool = False
) -> FrameGeometry:
    """Scale a frame into the box at its aspect ratio; pad right and bottom to multiples of 32.

    Portrait frames turn the box, so ``256x448`` means short side 256, long side 448. ``fixed``: the
    network accepts one height and width only, so the box is not turned, and padding fills it.
    """
    height, width = _scaled(display, box, fixed=fixed)
    content = (max(1, round(height)), max(1, round(width)))
    if fixed:
        return FrameGeometry(display, content, box)
    padded = tuple(-(-side // STRIDE) * STRIDE for side in content)
    return FrameGeometry(display, content, (padded[0], padded[1]))


def stretch_to_stride(display: tuple[int, int], box: tuple[int, int]) -> FrameGeometry:
    """Scale a frame into the box, and stretch its sides to the nearest multiples of 32.

    This is for networks that padding would disturb. A side changes by at most 16 pixels. Portrait
    frames turn the box.
    """
    sides = _scaled(display, box)
    content = tuple(max(STRIDE, math.floor(side / STRIDE + 0.5) * STRIDE) for side in sides)
    return FrameGeometry(display, (content[0], content[1]), (content[0], content[1]))


def short_side_box(short_side: int) -> tuple[int, int]:
    """Return a box in which the short side of every frame becomes ``short_side`` pixels."""
    return (short_side, _ANY_LENGTH)


def _scaled(
    display: tuple[int, int], box: tuple[int, int], *, fixed: bool = False
) -> tuple[float, float]:
    """Return the (height, width) of a frame that fills the box, before rounding."""
    height, width = display
    if height < 1 or width < 1:
        raise InputError(f"a frame of {width}x{height} pixels cannot be segmented")
    short, long = sorted(box)
    turned = (long, short) if height > width else (short, long)
    box_height, box_width = box if fixed else turned
    scale = min(box_height / height, box_width / width)
    return height * scale, width * scale


def resize_frame(image: NDArray[np.uint8], geometry: FrameGeometry) -> NDArray[np.uint8]:
    """Make the network input uint8 [1, padded height, padded width, 3] of an RGB image [H,W,3].

    Columns are resized before rows. :func:`resize_weights` gives the same resizing as numbers.
    """
    height, width = geometry.content
    content = image
    if image.shape[:2] != geometry.content:
        wide = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BILINEAR)
        content = np.asarray(wide.resize((width, height), Image.Resampling.BILINEAR))
    if geometry.padded == geometry.content:
        return np.ascontiguousarray(content)[None]
    frame = np.empty((1, *geometry.padded, 3), dtype=np.uint8)
    frame[:] = PADDING
    frame[0, :height, :width] = content
    return frame


def resize_weights(geometry: FrameGeometry) -> tuple[AxisWeights, AxisWeights]:
    """Return the fixed-point weights of :func:`resize_frame`: of rows, then of columns.

    Columns are summed first; their sums are rounded to bytes before rows are summed.
    """
    rows, columns = (
        fixed_point(bilinear_weights(source, source, size))
        for source, size in zip(geometry.display, geometry.content, strict=True)
    )
    return rows, columns


def upsample_logits(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.float32]:
    """Upsample logits [padded height/4, padded width/4] to the displayed size: float32 [H,W].

    One bilinear step leads from stride 4 to the displayed size; padding is left out. Columns are
    resized first: Pillow 13 and newer resize rows first where they become fewer, which rounds
    differently, and :func:`upsample_weights` must agree with every version.
    """
    return _resize_rows(_resize_columns(logits, geometry), geometry)


def _resize_columns(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.float32]:
    """Resize each row to the displayed width: float32 [padded height/4, W]."""
    rows, columns = len(logits), geometry.content[1] / MASK_STRIDE
    image = Image.fromarray(logits)
    size, box = (geometry.display[1], rows), (0, 0, columns, rows)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))


def _resize_rows(wide: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.float32]:
    """Resize each column to the displayed height: float32 [H, width of the input]."""
    rows, columns = geometry.content[0] / MASK_STRIDE, wide.shape[1]
    image = Image.fromarray(wide)
    size, box = (columns, geometry.display[0]), (0, 0, columns, rows)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))


def upsample_all_logits(
    logits: NDArray[np.float32], geometry: FrameGeometry
) -> NDArray[np.float32]:
    """Upsample each of E maps [E, padded height/4, padded width/4]: float32 [E,H,W]."""
    upsampled = np.empty((len(logits), *geometry.display), dtype=np.float32)
    for target, one in zip(upsampled, logits, strict=True):
        target[:] = upsample_logits(one, geometry)
    return upsampled


def upsample_weights(
    logits: tuple[int, int], geometry: FrameGeometry
) -> tuple[AxisWeights, AxisWeights]:
    """Return the weights of :func:`upsample_logits` for logits of this (height, width).

    Weights of rows come first, then those of columns. Columns are summed first; their sums are
    rounded to float32 before rows are summed.
    """
    rows, columns = (
        bilinear_weights(source, content / MASK_STRIDE, size)
        for source, content, size in zip(logits, geometry.content, geometry.display, strict=True)
    )
    return rows, columns


def upsample_mask(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.bool_]:
    """Make a mask of logits [padded height/4, padded width/4]: bool [H,W].

    Foreground is where the upsampled logits exceed 0. Only columns with a positive logit are
    upsampled: a mean of others cannot exceed 0. A mask is mostly background, so this is most of
    the time.
    """
    mask = np.zeros(geometry.display, dtype=np.bool_)
    wide = _resize_columns(logits, geometry)
    positive = np.flatnonzero((wide > 0).any(axis=0))  # a NaN hides no other number
    if positive.size:
        columns = slice(positive[0], positive[-1] + 1)
        np.greater(_resize_rows(wide[:, columns], geometry), 0, out=mask[:, columns])
    return mask


def upsample_masks(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.bool_]:
    """Make a mask of each of E maps [E, padded height/4, padded width/4]: bool [E,H,W]."""
    masks = np.empty((len(logits), *geometry.display), dtype=np.bool_)
    for mask, one in zip(masks, logits, strict=True):
        mask[:] = upsample_mask(one, geometry)
    return masks
