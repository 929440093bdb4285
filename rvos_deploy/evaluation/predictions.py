"""Load predicted masks from a folder in the submission layout, or from a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets import VideoRecord
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.mismatch import no_masks_found
from rvos_deploy.images import read_image

Mask = NDArray[np.bool_]

Predict = Callable[[VideoRecord], Iterable[Mask]]
"""Yields one mask per expression, bool [E, H, W], for each frame of a video in order."""

CHUNK = 16
"""Frames that one worker scores at a time: few enough for memory, enough work to send."""


class PredictedMasks(Protocol):
    """Define masks of some frames of a video, which a worker process can load."""

    def load(self, video: VideoRecord) -> list[list[Mask | None]]:
        """Load masks by expression, then by frame; a missing prediction is None."""


class Predictions(Protocol):
    """Define a source of predicted masks."""

    def chunks(self, video: VideoRecord) -> Iterator[tuple[int, int, PredictedMasks]]:
        """Yield (first frame, frame after the last, masks) in order, without gaps."""


@dataclass(frozen=True)
class PredictionFolder:
    """Read ``<video>/<expression>/<frame>.png``; any non-zero value is foreground."""

    root: Path

    def check(self, videos: Sequence[VideoRecord]) -> None:
        """Check that a mask exists. Raises InputError: there is none; names the files found."""
        names = (
            prediction_name(video, expression, frame)
            for video in videos
            for expression in range(len(video.expressions))
            for frame in range(len(video.frames))
        )
        # A missing mask counts 0. If all are missing, the folder or its names are wrong.
        if not any((self.root / name).is_file() for name in names):
            raise no_masks_found(self.root, videos)

    def chunks(self, video: VideoRecord) -> Iterator[tuple[int, int, PredictedMasks]]:
        """Yield ranges of frames; ``load`` opens their files."""
        for start in range(0, len(video.frames), CHUNK):
            yield start, min(start + CHUNK, len(video.frames)), _StoredMasks(self.root)


@dataclass(frozen=True)
class _StoredMasks:
    root: Path

    def load(self, video: VideoRecord) -> list[list[Mask | None]]:
        return [
            [
                _read_mask(self.root / prediction_name(video, e, t), video.size)
                for t in range(len(video.frames))
            ]
            for e in range(len(video.expressions))
        ]


def prediction_name(video: VideoRecord, expression: int, frame: int) -> str:
    """Return the name of a mask in the submission layout."""
    return f"{video.name}/{video.expressions[expression].id}/{video.frames[frame].stem}.png"


def _read_mask(path: Path, size: tuple[int, int]) -> Mask | None:
    """Read a mask, bool [H, W]; a missing file is None. Raises InputError: another size or type."""
    if not path.exists():
        return None
    image = read_image(path)
    if image.format != "PNG":
        raise InputError(
            f"{path} is a {image.format} image; write masks as PNG, since other formats change "
            "their values"
        )
    has_alpha, values = "A" in image.mode, np.asarray(image)
    if values.shape[:2] != size:
        raise InputError(
            f"{path} is {values.shape[0]}x{values.shape[1]}, the video is {size[0]}x{size[1]} "
            "(height x width); bring predictions to the video's size, with nearest neighbour"
        )
    if values.ndim == 3:
        values = values[..., : values.shape[2] - has_alpha].max(axis=2)
    mask: Mask = values != 0
    return mask


@dataclass(frozen=True)
class NetworkPredictions:
    """Compute masks by a function, all expressions of a video at once."""

    predict: Predict

    def chunks(self, video: VideoRecord) -> Iterator[tuple[int, int, PredictedMasks]]:
        """Yield the function's masks, packed to bits, ``CHUNK`` frames at a time."""
        start, waiting = 0, []
        for masks in self.predict(video):
            wanted = (len(video.expressions), *video.size)
            if masks.shape != wanted:
                raise InputError(
                    f"video {video.name}: masks of shape {list(masks.shape)} were predicted, "
                    f"{list(wanted)} are needed (expressions, height, width)"
                )
            waiting.append(np.packbits(masks, axis=-1))
            if len(waiting) == CHUNK:
                yield start, start + CHUNK, _PackedMasks(np.stack(waiting))
                start, waiting = start + CHUNK, []
        stop = start + len(waiting)
        if stop != len(video.frames):
            raise InputError(
                f"video {video.name} has {len(video.frames)} frames, but {stop} have masks; yield "
                "one array of masks per frame"
            )
        if waiting:
            yield start, stop, _PackedMasks(np.stack(waiting))


@dataclass(frozen=True, eq=False)
class _PackedMasks:
    """Hold masks as bits: uint8 [T, E, H, ceil(W / 8)]."""

    bits: NDArray[np.uint8]

    def load(self, video: VideoRecord) -> list[list[Mask | None]]:
        masks = np.unpackbits(self.bits, axis=-1, count=video.size[1]).view(np.bool_)
        return [list(masks[:, e]) for e in range(masks.shape[1])]
