"""Draw masks over a frame for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.video.drawing.legend import draw_legend
from rvos_deploy.video.drawing.palette import Colour, colour_of
from rvos_deploy.video.frames import Image, check_image
from rvos_deploy.video.mask_box import mask_box

Mask = NDArray[np.bool_]
_Box: TypeAlias = "tuple[slice[int, int, int], slice[int, int, int]]"

_TINT = 112  # of 256: the image under the mask stays visible
_SHADE = 96  # of 256: brightness around a contour


def draw_overlay(
    image: Image,
    masks: NDArray[np.bool_],
    labels: Sequence[str],
    scores: Sequence[float] | NDArray[np.float32] | None = None,
    numbers: Sequence[int] | None = None,
) -> Image:
    """Return a copy of ``image`` with tinted and outlined masks, and a legend.

    ``image`` is uint8 [H, W, 3], RGB; ``masks`` is bool [E, H, W]; ``labels`` has E texts and
    ``scores`` E numbers, which are printed with two decimals. ``numbers`` are those of the E
    expressions (None: 0, 1, ...): an expression always has the colour of its number
    (``palette.colour_of``). The legend dims expressions whose mask is empty. Raises InputError:
    shapes do not agree.
    """
    check_image(image)
    _check_masks(masks, image, labels, scores)
    drawn: Image = image.copy()
    boxes = [box and box.slices for box in map(mask_box, masks)]
    numbers = range(len(labels)) if numbers is None else numbers
    for number, mask, box in zip(numbers, masks, boxes, strict=True):
        if box is not None:
            _tint(drawn[box], mask[box], colour_of(number))
    thickness = max(1, round(min(image.shape[:2]) / 240))
    # Contours are drawn after all tints, so they stay crisp where masks overlap.
    for number, mask, box in zip(numbers, masks, boxes, strict=True):
        if box is not None:
            around = _grow(box, mask.shape)
            _outline(drawn[around], mask[around], colour_of(number), thickness)
    draw_legend(
        drawn,
        labels,
        [box is not None for box in boxes],
        None if scores is None else [float(score) for score in scores],
        numbers,
    )
    return drawn


def _check_masks(
    masks: NDArray[np.bool_],
    image: Image,
    labels: Sequence[str],
    scores: Sequence[float] | NDArray[np.float32] | None,
) -> None:
    expected = (len(labels), *image.shape[:2])
    if masks.dtype != np.bool_ or masks.shape != expected:
        raise InputError(
            f"masks must be bool {list(expected)} (labels, height, width), "
            f"found {masks.dtype} {list(masks.shape)}"
        )
    if scores is not None and len(scores) != len(labels):
        raise InputError(f"{len(scores)} scores for {len(labels)} labels; give one a label")


def _grow(box: _Box, shape: tuple[int, ...]) -> _Box:
    rows, columns = (
        slice(max(0, side.start - 1), min(size, side.stop + 1))
        for side, size in zip(box, shape, strict=True)
    )
    return rows, columns


def _tint(image: Image, mask: Mask, colour: Colour) -> None:
    for channel, light in enumerate(colour):
        # A table of 256 entries is twice as fast as blending pixels.
        table = ((np.arange(256) * (256 - _TINT) + light * _TINT) >> 8).astype(np.uint8)
        values = image[..., channel]
        np.copyto(values, table[values], where=mask)


def _outline(image: Image, mask: Mask, colour: Colour, thickness: int) -> None:
    # One dark pixel around the line keeps a light colour visible on a light frame.
    around = ~mask
    dark, line = around & ~_eroded(around, 1), mask & ~_eroded(mask, thickness)
    for channel, light in enumerate(colour):
        values = image[..., channel]
        values[line] = light
        values[dark] = values[dark] * np.uint16(_SHADE) >> 8


def _eroded(mask: Mask, by: int) -> Mask:
    """Erode the mask by ``by`` pixels; the border of the picture is not an edge."""
    padded = np.pad(mask, by, mode="edge")
    vertical = padded[: -2 * by, by:-by] & padded[2 * by :, by:-by]
    horizontal = padded[by:-by, : -2 * by] & padded[by:-by, 2 * by :]
    kept: Mask = mask & vertical & horizontal
    return kept
