"""Write a video with transparency for each expression, for editing: ``alpha/<expression>.mov``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, made_folder
from rvos_deploy.video.frames import Image, VideoInfo
from rvos_deploy.video.mask_box import mask_box
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.encoding import VideoFormat
from rvos_deploy.video.sinks.video_file import VideoWriter

ALPHA = "alpha"
"""Folder of a run's videos with transparency."""
MOST = 16
"""Most expressions of one run: each has an encoder of its own."""
# Pixels around the box that keep their colour, so that a filter at the edge finds no black.
_MARGIN = 8

_PRORES = VideoFormat(
    "mov",
    "prores_ks",
    "yuva444p10le",
    {"profile": "4444", "vendor": "apl0"},
    alpha=True,
    even=False,
)
# The alternate reference frames of VP9 cannot have transparency. WebM stores milliseconds.
_VP9 = VideoFormat(
    "webm",
    "libvpx-vp9",
    "yuva420p",
    {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "auto-alt-ref": "0"},
    alpha=True,
    even=False,
    finest_time_base=Fraction(1, 1000),
    metadata={"alpha_mode": "1"},
)
# HEVC with transparency is not here: libx265 makes it only in builds that PyAV does not ship.
FORMATS: dict[str, VideoFormat] = {"prores": _PRORES, "vp9": _VP9}
"""Formats by the name that users give."""


class AlphaSink(Sink):
    """Write the frame with the mask as its alpha channel; the files appear at the end.

    Colours are not multiplied by alpha (straight alpha). Outside the mask's box they are black, so
    that files stay small.
    """

    def __init__(self, folder: Path, format: VideoFormat) -> None:
        self._folder, self._format = folder, format
        self._writers: list[VideoWriter] = []
        self._undo = ExitStack()

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Prepare the encoders.

        Raises InputError: there are too many expressions, or the folder cannot be made.
        """
        if len(expressions) > MOST:
            raise InputError(
                f"alpha writes a video for each expression, at most {MOST}, found "
                f"{len(expressions)}; split them into several runs"
            )
        try:
            self._undo.enter_context(made_folder(self._folder))
        except OSError as error:
            raise InputError(cannot_write(self._folder, error)) from error
        for number in range(len(expressions)):
            path = self._folder / f"{number}.{self._format.container}"
            self._writers.append(VideoWriter(path, info, self._format))

    def write(self, result: FrameResult) -> None:
        """Encode one frame of each video."""
        image = result.frame.host_image()
        for expression, mask in zip(result.expressions, result.masks, strict=True):
            self._writers[expression].write(
                _with_alpha(image, mask), result.frame.pts, result.frame.duration
            )

    def finish(self) -> None:
        """Complete the files and rename them to their final names."""
        for writer in self._writers:
            writer.close()
        self._undo.close()

    def abort(self) -> None:
        """Remove the unfinished files."""
        for writer in self._writers:
            writer.abort()
        self._undo.close()

    def describe(self) -> dict[str, object]:
        """Return where the videos are."""
        return {"alpha": {"files": f"{ALPHA}/{{expression}}.{self._format.container}"}}


def _with_alpha(image: Image, mask: NDArray[np.bool_]) -> Image:
    """Return uint8 [H, W, 4]."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    if box := mask_box(mask):
        rows = slice(max(0, box.top - _MARGIN), box.top + box.height + _MARGIN)
        columns = slice(max(0, box.left - _MARGIN), box.left + box.width + _MARGIN)
        pixels[rows, columns, :3] = image[rows, columns]
        pixels[..., 3] = mask * np.uint8(255)
    return pixels


def make(request: SinkRequest) -> AlphaSink:
    """Make the sink of a run. Raises InputError: the format is unknown, or not in this FFmpeg."""
    name = request.target or "prores"
    if name not in FORMATS:
        raise InputError(f"alpha has no format '{name}'; choose from {', '.join(FORMATS)}")
    codec = FORMATS[name].codec
    if codec not in av.codecs_available:
        raise InputError(
            f"this FFmpeg has no encoder {codec}; install PyAV's own wheel, or choose another of "
            f"{', '.join(FORMATS)}"
        )
    return AlphaSink(request.out / ALPHA, FORMATS[name])
