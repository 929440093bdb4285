"""Write cut-outs: ``cutouts/<expression index>/<frame>.png``, transparent around the object."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image as Pillow

from rvos_deploy.video.mask_box import mask_box
from rvos_deploy.video.sinks.base import FrameResult, SinkRequest
from rvos_deploy.video.sinks.frame_files import PICTURE_PNG, FrameFileSink

CUTOUTS = "cutouts"
"""Folder of a run's cut-outs."""


class CutoutSink(FrameFileSink):
    """Write RGBA PNGs that are cut to the mask's box; an empty mask has no file.

    Pixels outside the mask are transparent black, so they hold nothing of the background.
    """

    options = PICTURE_PNG

    def pictures(self, result: FrameResult, name: str) -> Iterator[tuple[str, Pillow.Image]]:
        """Yield the cut-outs."""
        image = result.frame.host_image()
        for expression, mask in zip(result.expressions, result.masks, strict=True):
            if box := mask_box(mask):
                alpha = mask[box.slices]
                pixels = np.dstack([image[box.slices] * alpha[..., None], alpha * np.uint8(255)])
                yield f"{expression}/{name}.png", Pillow.fromarray(pixels)

    def describe(self) -> dict[str, object]:
        """Return where the cut-outs are; "box" of ``result.json`` says where each belongs."""
        return {"cutouts": {"files": f"{CUTOUTS}/{{expression}}/{{file}}.png"}}


def make(request: SinkRequest) -> CutoutSink:
    """Make the sink of a run."""
    return CutoutSink(request.out / CUTOUTS, request.names)
