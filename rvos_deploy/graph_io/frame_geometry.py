"""From the displayed frame to the network's input, and from its mask logits back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.graph_io.resampling import Taps, bilinear_taps, fixed_point

MASK_STRIDE = 4
PADDING = (122, 116, 104)
"""CLIP's mean colour: what is padded is close to zero after normalisation."""


_ANY_LENGTH = 1 << 40


@dataclass(frozen=True)
class FrameGeometry:
    """Sizes (height, width) of a frame as displayed, as the network sees it, and with padding."""

    display: tuple[int, int]
    content: tuple[int, int]
    padded: tuple[int, int]


def fit_frame(
    display: tuple[int, int], box: tuple[int, int], *, fixed: bool = False
) -> FrameGeometry:
    """Scale a frame to fit the box, keeping its aspect; pad right and bottom to multiples of 32.

    The box is turned for portrait frames, so that ``256x448`` means short side 256, long side 448.
    ``fixed``: the network takes the box's height and width alone, so the box stays as it is, and
    padding fills it.
    """
    height, width = _scaled(display, box, fixed=fixed)
    content = (max(1, round(height)), max(1, round(width)))
    if fixed:
        return FrameGeometry(display, content, box)
    padded = tuple(-(-side // STRIDE) * STRIDE for side in content)
    return FrameGeometry(display, content, (padded[0], padded[1]))


def stretch_frame(display: tuple[int, int], box: tuple[int, int]) -> FrameGeometry:
    """Scale a frame to fit the box, and stretch its sides to the nearest multiples of 32.

    For networks that padding would disturb. The aspect ratio changes by less than 16 pixels a side.
    The box is turned for portrait frames.
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
    """Network input of a displayed RGB image [H,W,3]: uint8 [1,padded height,padded width,3].

    Columns first, as in :func:`display_logits`; :func:`frame_taps` says the same in numbers.
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


def frame_taps(geometry: FrameGeometry) -> tuple[Taps, Taps]:
    """What :func:`resize_frame` makes of a frame: rows, then columns, in fixed point.

    Columns come first there, and their sums are rounded to bytes before rows are summed.
    """
    rows, columns = (
        fixed_point(bilinear_taps(source, source, size))
        for source, size in zip(geometry.display, geometry.content, strict=True)
    )
    return rows, columns


def display_logits(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.float32]:
    """Logits at the displayed size from [padded height/4, padded width/4]: float32 [H,W].

    One bilinear step from stride 4 to the displayed size, padding left out. Columns first: Pillow
    by itself takes rows first from 13 on where there become fewer, which rounds otherwise, and
    :func:`display_taps` must say the same of every version.
    """
    height, width = geometry.display
    rows, columns = (side / MASK_STRIDE for side in geometry.content)
    wide = Image.fromarray(logits).resize(
        (width, logits.shape[0]), Image.Resampling.BILINEAR, box=(0, 0, columns, logits.shape[0])
    )
    resized = wide.resize((width, height), Image.Resampling.BILINEAR, box=(0, 0, width, rows))
    return np.asarray(resized)


def display_all_logits(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.float32]:
    """:func:`display_logits` of each of E maps [E, padded height/4, padded width/4]: [E,H,W]."""
    shown = np.empty((len(logits), *geometry.display), dtype=np.float32)
    for target, one in zip(shown, logits, strict=True):
        target[:] = display_logits(one, geometry)
    return shown


def display_taps(logits: tuple[int, int], geometry: FrameGeometry) -> tuple[Taps, Taps]:
    """What :func:`display_logits` makes of logits of this (height, width): rows, then columns.

    Columns come first there, and their sums are rounded to float32 before rows are summed.
    """
    rows, columns = (
        bilinear_taps(source, content / MASK_STRIDE, size)
        for source, content, size in zip(logits, geometry.content, geometry.display, strict=True)
    )
    return rows, columns


def display_mask(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.bool_]:
    """Mask at the displayed size from logits [padded height/4, padded width/4]: bool [H,W].

    Where :func:`display_logits` are above 0 is foreground.
    """
    if logits.max() <= 0:
        return np.zeros(geometry.display, dtype=np.bool_)
    mask: NDArray[np.bool_] = display_logits(logits, geometry) > 0
    return mask


def display_masks(logits: NDArray[np.float32], geometry: FrameGeometry) -> NDArray[np.bool_]:
    """Masks bool [E,H,W] of logits [E, padded height/4, padded width/4], each as a mask alone."""
    masks = np.empty((len(logits), *geometry.display), dtype=np.bool_)
    for mask, one in zip(masks, logits, strict=True):
        mask[:] = display_mask(one, geometry)
    return masks
