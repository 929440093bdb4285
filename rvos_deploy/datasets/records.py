"""What every reader gives: videos, their expressions, and masks that are read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.images import displayed_size, read_rgb

Masks = NDArray[np.bool_]


class Annotation(Protocol):
    """The masks of one video's objects."""

    @property
    def objects(self) -> tuple[int, ...]:
        """Keys of all objects known of the video, also of those that no expression means."""

    def masks(self, objects: Sequence[int], frames: Sequence[int], size: tuple[int, int]) -> Masks:
        """Read the masks of ``objects`` in ``frames``: bool [K, T, H, W].

        Raises InputError, naming file and entry, where they are damaged or not of ``size``.
        """

    def part(self, start: int, stop: int) -> Annotation:
        """The same for frames ``start`` .. ``stop`` - 1 alone."""


@dataclass(frozen=True)
class ExpressionRecord:
    """A sentence and what it means.

    Args:
        id: its name in the data set, and that of its folder in a submission.
        text: the sentence, as it stands in the data set.
        kind: what the data set calls it (Moving Sprites), or None.
        object_ids: ids of the objects within the video; empty for no target; None where the split
            is published without ground truth.
        targets: keys of these objects in the video's annotation (MeViS: ``anno_id``).
    """

    id: str
    text: str
    kind: str | None
    object_ids: tuple[int, ...] | None
    targets: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """A video: sorted frame files, expressions, and its masks (None without ground truth)."""

    name: str
    frames: tuple[Path, ...]
    expressions: tuple[ExpressionRecord, ...]
    annotation: Annotation | None

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width, from the first frame's header. InputError when it cannot be read."""
        width, height = displayed_size(self.frames[0])
        return height, width

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode one frame: RGB uint8 [H, W, 3]. InputError when it is damaged or of another size.

        Another size than the first frame's, that is: masks would not fit.
        """
        path = self.frames[index]
        image = read_rgb(path)
        if image.shape[:2] != self.size:
            raise InputError(
                f"{path} is {image.shape[0]}x{image.shape[1]}, but {self.frames[0].name} is "
                f"{self.size[0]}x{self.size[1]}; the frames of a video must have one size"
            )
        return image

    def union_masks(
        self, expression: ExpressionRecord, frames: Sequence[int] | None = None
    ) -> Masks:
        """Ground truth of an expression: the union of its objects, bool [T, H, W].

        Args:
            expression: one of this video's.
            frames: indices of the frames wanted; all of them by default.
        """
        masks = self._read(expression.targets or (), frames)
        union: Masks = np.logical_or.reduce(masks, axis=0)
        return union

    def object_masks(self, frames: Sequence[int] | None = None) -> Masks:
        """One mask for each object of ``annotation.objects``, in its order: bool [K, T, H, W]."""
        return self._read(self._known.objects, frames)

    def referred(self, expression: ExpressionRecord) -> Masks:
        """Tell which objects of ``annotation.objects`` an expression means: bool [K]."""
        meant = set(expression.targets or ())
        return np.array([key in meant for key in self._known.objects], dtype=np.bool_)

    def part(self, start: int, stop: int) -> VideoRecord:
        """Frames ``start`` .. ``stop`` - 1 alone, for a worker process."""
        annotation = self.annotation and self.annotation.part(start, stop)
        return replace(self, frames=self.frames[start:stop], annotation=annotation)

    @property
    def _known(self) -> Annotation:
        if self.annotation is None:
            raise InputError(f"the video {self.name} is published without ground truth")
        return self.annotation

    def _read(self, objects: Sequence[int], frames: Sequence[int] | None) -> Masks:
        wanted = range(len(self.frames)) if frames is None else frames
        return self._known.masks(objects, wanted, self.size)


@dataclass(frozen=True, eq=False)
class DataSplit:
    """One split of a data set: the file that lists it, and its videos."""

    meta: Path
    videos: tuple[VideoRecord, ...]

    @property
    def has_truth(self) -> bool:
        """Whether its masks are known."""
        return all(video.annotation is not None for video in self.videos)
