"""Write the PNG files of a frame: all of them get their final names together, or none does."""

from __future__ import annotations

import os
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.files import cannot_write, create_temporary, discard, made_folder, put_in_place
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameNames, FrameResult, Sink
from rvos_deploy.video.sinks.outputs import SOFTWARE

# A mask is made of runs of equal bytes. To search for runs alone is as fast as level 1, three times
# as fast as Pillow's default, and makes a smaller file than either.
MASK_PNG: Mapping[str, int] = {"compress_level": 1, "compress_type": zlib.Z_RLE}
"""Options of Pillow for PNGs of masks."""
PICTURE_PNG: Mapping[str, int] = {"compress_level": 1}
"""Options of Pillow for PNGs of pictures."""


class PreparedFile(NamedTuple):
    """Hold a file that is written under a temporary name."""

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


def prepare_png(path: Path, image: Pillow.Image, options: Mapping[str, int]) -> PreparedFile:
    """Write a PNG under a temporary name. Raises VideoError: it cannot be written."""
    text = PngInfo()
    text.add_text("Software", SOFTWARE)
    try:
        with made_folder(path.parent), ExitStack() as undo:
            temporary = create_temporary(path)
            undo.callback(discard, temporary)
            image.save(temporary, format="PNG", pnginfo=text, **options)
            undo.pop_all()
    except OSError as error:
        raise VideoError(cannot_write(path, error)) from error
    return PreparedFile(temporary, path)


class FrameFileSink(Sink):
    """Write PNGs of each frame into a folder; a kind says which (``pictures``).

    The PNGs of a frame get their final names together.
    """

    options: Mapping[str, int] = MASK_PNG
    """Options of Pillow."""

    def __init__(self, folder: Path, names: FrameNames) -> None:
        self._folder = folder
        self._names = names
        self._prepared: list[PreparedFile] = []
        self._placed: list[Path] = []
        self._undo = ExitStack()

    def inner_folders(self, expressions: Sequence[str]) -> Sequence[int]:
        """Return the numbers of the folders in the folder: one for each expression."""
        return range(len(expressions))

    @abstractmethod
    def pictures(self, result: FrameResult, name: str) -> Iterator[tuple[str, Pillow.Image]]:
        """Yield each file of a frame with its picture; ``name`` is the frame's, without suffix."""

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Make the folders; those that stay empty are removed at the end.

        Raises InputError: a folder cannot be made.
        """
        try:
            self._undo.enter_context(made_folder(self._folder))
            for number in self.inner_folders(expressions):
                self._undo.enter_context(made_folder(self._folder / str(number)))
        except OSError as error:
            raise InputError(cannot_write(self._folder, error)) from error

    def write(self, result: FrameResult) -> None:
        """Write the frame's PNGs under temporary names."""
        self._prepared, self._placed = [], []
        for file, picture in self.pictures(result, self._names.of(result.frame)):
            self._prepared.append(prepare_png(self._folder / file, picture, self.options))

    def commit(self) -> None:
        """Rename the PNGs to their final names.

        Raises VideoError: a rename failed, or a file that no run wrote has the name.
        """
        for file in self._prepared:
            if os.path.lexists(file.path):
                raise VideoError(
                    f"{file.path} was not written by a run, so it is not replaced; move it, or "
                    "choose another folder"
                )
            file.put_in_place()
            self._placed.append(file.path)

    def rollback(self) -> None:
        """Remove the PNGs of the frame written last, under temporary and final names."""
        for path in self._placed:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._discard()

    def finish(self) -> None:
        """Remove empty folders."""
        self._undo.close()

    def abort(self) -> None:
        """Remove PNGs that were never committed, and empty folders."""
        self._discard()
        self._undo.close()

    def _discard(self) -> None:
        for file in self._prepared:
            file.discard()
        self._prepared, self._placed = [], []


def mask_picture(mask: NDArray[np.bool_]) -> Pillow.Image:
    """Return a mask, bool [H, W], as an 8-bit grey picture of 0 and 255.

    Raises InputError: the mask has another shape or dtype.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise InputError(f"a mask must be bool [H, W], found {mask.dtype} {list(mask.shape)}")
    return Pillow.fromarray(mask.astype(np.uint8) * np.uint8(255))
