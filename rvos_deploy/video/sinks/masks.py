"""Write masks as PNG files: ``masks/<expression index>/<frame index, 5 digits>.png``."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.files import (
    cannot_write,
    create_temporary,
    discard,
    made_folder,
    put_in_place,
)
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink

MASKS = "masks"
"""Folder of a run's masks."""

# A mask is made of runs of equal bytes. To search for runs alone is as fast as level 1, three times
# as fast as Pillow's default, and makes a smaller file than either.
_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}


class MaskSink(Sink):
    """Write the masks of each frame; either all of them get their final names, or none."""

    needs_images = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = MaskWriter(folder)
        self._prepared: list[PreparedMask] = []
        self._placed: list[Path] = []
        self._undo = ExitStack()

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Make the folders; folders that stay empty are removed at the end."""
        try:
            for number in range(len(expressions)):
                self._undo.enter_context(made_folder(self._folder / str(number)))
        except OSError as error:
            raise InputError(cannot_write(self._folder, error)) from error

    def write(self, result: FrameResult) -> None:
        """Write a frame's masks under temporary names."""
        self._prepared, self._placed = [], []
        for expression, mask in zip(result.expressions, result.masks, strict=True):
            self._prepared.append(self._writer.prepare(expression, result.frame.index, mask))

    def commit(self) -> None:
        """Rename the masks to their final names."""
        for mask in self._prepared:
            mask.put_in_place()
            self._placed.append(mask.path)

    def rollback(self) -> None:
        """Remove the masks of the frame written last, under temporary and final names."""
        for path in self._placed:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for mask in self._prepared:
            mask.discard()
        self._prepared, self._placed = [], []

    def finish(self) -> None:
        """Remove folders without a mask."""
        self._undo.close()

    def abort(self) -> None:
        """Remove masks that were never committed."""
        for mask in self._prepared:
            mask.discard()
        self._undo.close()


class PreparedMask(NamedTuple):
    """Hold a mask that is written under a temporary name."""

    temporary: Path
    path: Path

    def put_in_place(self) -> None:
        """Rename the file to its final name. Raises VideoError: the rename failed."""
        try:
            put_in_place(self.temporary, self.path)
        except OSError as error:
            raise VideoError(cannot_write(self.path, error)) from error

    def discard(self) -> None:
        """Remove the file, unless it has its final name. Raises nothing."""
        discard(self.temporary)


class MaskWriter:
    """Write masks as ``DIRECTORY/<expression index>/<frame index, 5 digits>.png``.

    They are 8-bit grey, 0 or 255: the layout of a MeViS submission. A PNG gets its final name only
    when it is complete. Threads may share a writer, if no two threads write the same mask.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def write(self, expression_index: int, frame_index: int, mask: NDArray[np.bool_]) -> Path:
        """Write one mask, bool [H, W], and return its path. Raises as :meth:`prepare`."""
        prepared = self.prepare(expression_index, frame_index, mask)
        try:
            prepared.put_in_place()
        finally:
            prepared.discard()
        return prepared.path

    def prepare(
        self, expression_index: int, frame_index: int, mask: NDArray[np.bool_]
    ) -> PreparedMask:
        """Write one mask, bool [H, W], under a temporary name.

        Raises:
            InputError: the mask has another shape or dtype, or an index is negative.
            VideoError: the file cannot be written.
        """
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            raise InputError(f"a mask must be bool [H, W], found {mask.dtype} {list(mask.shape)}")
        if expression_index < 0 or frame_index < 0:
            raise InputError(f"indices count from 0, found {expression_index} and {frame_index}")
        path = self._directory / str(expression_index) / f"{frame_index:05d}.png"
        image = Pillow.fromarray(mask.astype(np.uint8) * np.uint8(255))
        try:
            with made_folder(path.parent), ExitStack() as undo:
                temporary = create_temporary(path)
                undo.callback(discard, temporary)
                image.save(temporary, format="PNG", **_PNG)
                undo.pop_all()
        except OSError as error:
            raise VideoError(cannot_write(path, error)) from error
        return PreparedMask(temporary, path)
