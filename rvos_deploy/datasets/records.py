"""Define the records that every reader returns: videos, expressions, and masks read on demand."""

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
    """Read the masks of one video's objects."""

    @property
    def objects(self) -> tuple[int, ...]:
        """Return the keys of all objects of the video, including those without an expression."""

    def masks(self, objects: Sequence[int], frames: Sequence[int], size: tuple[int, int]) -> Masks:
        """Read the masks of ``objects`` in ``frames``: bool [K, T, H, W].

        Raises InputError, which names file and entry: a mask is damaged or has another size.
        """

    def part(self, start: int, stop: int) -> Annotation:
        """Return the annotation of frames ``start`` to ``stop`` - 1."""


@dataclass(frozen=True)
class ExpressionRecord:
    """Hold a referring expression and its target objects.

    Args:
        id: name of the expression in the data set, and its folder in a submission.
        text: the text, unchanged from the data set.
        kind: the kind of the expression in Moving Sprites, or None.
        object_ids: ids of the target objects within the video; empty for no target; None for a
            split without published ground truth.
        targets: keys of these objects in the video's annotation (MeViS: ``anno_id``).
    """

    id: str
    text: str
    kind: str | None
    object_ids: tuple[int, ...] | None
    targets: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class VideoRecord:
    """Hold a video: sorted frame files, expressions, and masks (None without ground truth)."""

    name: str
    frames: tuple[Path, ...]
    expressions: tuple[ExpressionRecord, ...]
    annotation: Annotation | None

    @cached_property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels, from the header of the first frame.

        Raises InputError: the header cannot be read.
        """
        width, height = displayed_size(self.frames[0])
        return height, width

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode one frame: RGB uint8 [H, W, 3].

        Raises InputError: the frame is damaged, or its size differs from the first frame's.
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
        """Read the union of the target masks of an expression: bool [T, H, W].

        Args:
            expression: an expression of this video.
            frames: indices of the frames to read; all frames by default.
        """
        masks = self._read(expression.targets or (), frames)
        union: Masks = np.logical_or.reduce(masks, axis=0)
        return union

    def object_masks(self, frames: Sequence[int] | None = None) -> Masks:
        """Read the masks of all ``annotation.objects``, in their order: bool [K, T, H, W]."""
        return self._read(self._known.objects, frames)

    def referred(self, expression: ExpressionRecord) -> Masks:
        """Return which of ``annotation.objects`` are targets of an expression: bool [K]."""
        targets = set(expression.targets or ())
        return np.array([key in targets for key in self._known.objects], dtype=np.bool_)

    def part(self, start: int, stop: int) -> VideoRecord:
        """Return a record of frames ``start`` to ``stop`` - 1, for a worker process."""
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
    """Hold one split of a data set: its list of expressions and its videos."""

    meta: Path
    videos: tuple[VideoRecord, ...]

    @property
    def has_truth(self) -> bool:
        """Return whether all videos have ground truth."""
        return all(video.annotation is not None for video in self.videos)
