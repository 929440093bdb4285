"""Write masks as PNG files: ``masks/<expression index>/<frame>.png``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from rvos_deploy.errors import InputError
from rvos_deploy.video.sinks.base import FrameResult, SinkRequest
from rvos_deploy.video.sinks.frame_files import MASK_PNG, FrameFileSink, mask_picture, prepare_png

MASKS = "masks"
"""Folder of a run's masks."""


class MaskSink(FrameFileSink):
    """Write a PNG for each expression, 8-bit grey, 0 or 255: the layout of a MeViS submission."""

    needs_images = False

    def pictures(self, result: FrameResult, name: str) -> Iterator[tuple[str, Pillow.Image]]:
        """Yield the masks."""
        for expression, mask in zip(result.expressions, result.masks, strict=True):
            yield f"{expression}/{name}.png", mask_picture(mask)

    def describe(self) -> dict[str, object]:
        """Return where the masks are."""
        return {"masks": {"files": f"{MASKS}/{{expression}}/{{file}}.png"}}


def make(request: SinkRequest) -> MaskSink:
    """Make the sink of a run."""
    return MaskSink(request.out / MASKS, request.names)


class MaskWriter:
    """Write masks as ``DIRECTORY/<expression index>/<frame index, 5 digits>.png``.

    They are 8-bit grey, 0 or 255: the layout of a MeViS submission. A PNG gets its final name only
    when it is complete. Threads may share a writer, if no two threads write the same mask.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def write(self, expression_index: int, frame_index: int, mask: NDArray[np.bool_]) -> Path:
        """Write one mask, bool [H, W], and return its path.

        Raises:
            InputError: the mask has another shape or dtype, or an index is negative.
            VideoError: the file cannot be written.
        """
        if expression_index < 0 or frame_index < 0:
            raise InputError(f"indices count from 0, found {expression_index} and {frame_index}")
        path = self._directory / str(expression_index) / f"{frame_index:05d}.png"
        prepared = prepare_png(path, mask_picture(mask), MASK_PNG)
        try:
            prepared.put_in_place()
        finally:
            prepared.discard()
        return prepared.path
