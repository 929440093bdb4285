"""Read masks as data sets store them: run lengths in a JSON file, or palette images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.images import read_image
from rvos_deploy.rle import decode, mask_size

VOID = 255
"""Palette index of void pixels. They count as background, as in the code of DAVIS."""


@dataclass(frozen=True, eq=False)
class RleAnnotation:
    """Hold the masks of MeViS, and decode them on demand.

    runs: the run lengths of a mask, or None, for each ``anno_id`` and each frame.
    """

    file: Path
    video: str
    frames: tuple[str, ...]
    runs: Mapping[int, tuple[Mapping[str, object] | None, ...]]

    @property
    def objects(self) -> tuple[int, ...]:
        """Return the ``anno_id`` of every object, ascending."""
        return tuple(sorted(self.runs))

    def masks(
        self, objects: Sequence[int], frames: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Decode masks: bool [K, T, H, W]. Raises InputError, which names the mask."""
        masks = np.zeros((len(objects), len(frames), *size), dtype=np.bool_)
        for row, anno in enumerate(objects):
            for column, frame in enumerate(frames):
                run = self.runs[anno][frame]
                if run is not None:
                    masks[row, column] = self._decode(run, anno, frame, size)
        return masks

    def _decode(
        self, run: Mapping[str, object], anno: int, frame: int, size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        where = f"{self.file}: {anno}: video {self.video}, frame {self.frames[frame]}"
        try:
            found = mask_size(run)
            if found == size:
                return decode(run)
        except InputError as error:
            raise InputError(f"{where}: {error}; download the file again") from error
        raise InputError(
            f"{where}: the mask is {found[0]}x{found[1]}, but the video's frames are "
            f"{size[0]}x{size[1]}; take annotation and frames from one release"
        )

    def part(self, start: int, stop: int) -> RleAnnotation:
        """Return the annotation of frames ``start`` to ``stop`` - 1."""
        runs = {anno: rows[start:stop] for anno, rows in self.runs.items()}
        return replace(self, frames=self.frames[start:stop], runs=runs)


@dataclass(frozen=True, eq=False)
class PaletteAnnotation:
    """Read masks of YouTube-VOS and DAVIS: one PNG per frame, whose indices are object ids."""

    files: tuple[Path, ...]
    objects: tuple[int, ...]

    def masks(
        self, objects: Sequence[int], frames: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Read masks: bool [K, T, H, W]. Raises InputError, which names the PNG."""
        masks = np.zeros((len(objects), len(frames), *size), dtype=np.bool_)
        for column, frame in enumerate(frames):
            indices = self.indices(frame)
            if indices.shape != size:
                raise InputError(
                    f"{self.files[frame]} is {indices.shape[0]}x{indices.shape[1]}, but the "
                    f"video's frames are {size[0]}x{size[1]}; take annotation and frames from one "
                    "release"
                )
            for row, key in enumerate(objects):
                masks[row, column] = indices == key
        return masks

    def indices(self, frame: int) -> NDArray[np.uint8]:
        """Return the palette indices of one frame: uint8 [H, W]; 0 is background."""
        path = self.files[frame]
        image = read_image(path)
        mode, indices = image.mode, np.array(image)
        if mode not in ("P", "L"):
            raise InputError(
                f"{path} is an image of mode {mode}, but object ids need palette indices (mode P); "
                "download the file again"
            )
        indices[indices == VOID] = 0
        return indices

    def part(self, start: int, stop: int) -> PaletteAnnotation:
        """Return the annotation of frames ``start`` to ``stop`` - 1."""
        return replace(self, files=self.files[start:stop])
