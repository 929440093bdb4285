"""Write one palette PNG a frame, whose pixels are numbers of expressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from rvos_deploy.errors import InputError
from rvos_deploy.video.drawing.palette import colour_of
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, SinkRequest
from rvos_deploy.video.sinks.frame_files import FrameFileSink

PALETTE = "palette"
"""Folder of a run's palette PNGs."""
MOST = 254
"""Most expressions of one palette: 0 is the background, and 255 means void in data sets."""


class PaletteSink(FrameFileSink):
    """Write a PNG a frame: 0 is the background, e + 1 is expression e.

    Where masks overlap, the expression with the higher score owns the pixel. Colours are those of
    the overlay.
    """

    needs_images = False

    def inner_folders(self, expressions: Sequence[str]) -> Sequence[int]:
        """Return nothing: the PNGs lie in the folder itself."""
        return ()

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Make the folder and the palette. Raises InputError: there are too many expressions."""
        if len(expressions) > MOST:
            raise InputError(
                f"a palette has numbers for {MOST} expressions, found {len(expressions)}; save "
                "masks instead, or split them into several runs"
            )
        colours = [(0, 0, 0), *(colour_of(number) for number in range(len(expressions)))]
        self._colours = [light for colour in colours for light in colour]
        super().open(info, expressions)

    def pictures(self, result: FrameResult, name: str) -> Iterator[tuple[str, Pillow.Image]]:
        """Yield the frame's PNG."""
        picture = Pillow.fromarray(owners(result))
        picture.putpalette(self._colours)
        yield f"{name}.png", picture

    def describe(self) -> dict[str, object]:
        """Return where the PNGs are."""
        return {"palette": {"files": f"{PALETTE}/{{file}}.png"}}


def owners(result: FrameResult) -> NDArray[np.uint8]:
    """Return which expression owns each pixel: uint8 [H, W], e + 1, and 0 where there is none."""
    masks = result.masks
    numbers = np.zeros(masks.shape[1:], np.uint8)
    # Ascending scores, so the best one is painted last; of equal scores the first expression wins.
    for row in sorted(range(len(masks)), key=lambda row: (result.scores[row], -row)):
        numbers[masks[row]] = result.expressions[row] + 1
    return numbers


def make(request: SinkRequest) -> PaletteSink:
    """Make the sink of a run."""
    return PaletteSink(request.out / PALETTE, request.names)
