"""Draw the masks of a clip in one picture: one row per expression, moments side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import fromarray

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, made_folder, replacing
from rvos_deploy.video.drawing.overlay import draw_overlay
from rvos_deploy.video.frames import Image

MOMENTS = 5
_BAR = 32  # pixels; a label inside a small frame would hide its object
_TRUTH = (255, 255, 255)
_DARK = 32


def draw_montage(
    images: Sequence[Image],
    masks: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    labels: Sequence[str],
) -> Image:
    """Tint the masks, and outline the ground truth in white.

    Args:
        images: T frames, uint8 [H,W,3] RGB.
        masks: bool [T,E,H,W].
        truth: ground truth, bool [T,E,H,W].
        labels: E texts.

    Returns:
        A picture uint8 [E*(H+bar),moments*W,3] of up to five moments from the first frame to the
        last.
    """
    shown = np.unique(np.linspace(0, len(images) - 1, MOMENTS).round().astype(int))
    picture = np.concatenate([images[t] for t in shown], axis=1)
    bar = max(_BAR, picture.shape[0] // 8)
    rows = []
    for e, label in enumerate(labels):
        found, true = (np.concatenate(list(m[shown, e]), axis=1) for m in (masks, truth))
        above = ((bar, 0), (0, 0))
        canvas = np.pad(picture, (*above, (0, 0)), constant_values=_DARK)
        row = draw_overlay(canvas, np.pad(found, above)[None], [label])
        row[bar:][_outline(true)] = _TRUTH
        rows.append(row)
    return np.concatenate(rows)


def write_montage(
    file: Path,
    images: Sequence[Image],
    masks: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    labels: Sequence[str],
) -> None:
    """Write the picture of :func:`draw_montage` as a PNG, complete or not at all.

    Raises InputError: the file cannot be written.
    """
    picture = fromarray(draw_montage(images, masks, truth, labels))
    try:
        with made_folder(file.parent), replacing(file) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
    except OSError as error:
        raise InputError(cannot_write(file, error)) from error


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that touch pixels outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = mask & ~inside
    return edge
