"""Compute J and F of many masks in several processes."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.datasets import VideoRecord
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.evaluation.predictions import Mask, PredictedMasks, prediction_name
from rvos_deploy.processes import WorkerPool

Scores = NDArray[np.float64]
Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Chunk:
    """Hold some frames of a video to score.

    Args:
        video: the video, cut to these frames.
        masks: the predicted masks.
        objects: None compares each expression with the union of its targets; keys of objects
            compare each expression, and after the last one an empty mask, with each object.
        png: whether to return the masks as files too.
    """

    video: VideoRecord
    masks: PredictedMasks
    objects: tuple[int, ...] | None = None
    png: bool = False


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """Hold the scores of a chunk of T frames and E expressions.

    Args:
        video: name of the video.
        frames: T.
        j: [E, T], or [E + 1, K, T] against K objects; a missing prediction has 0. None without
            ground truth.
        f: in the shape of ``j``.
        empty: [E], whether no pixel was predicted.
        missing: [E], names of missing files.
        png: names in the submission layout, and files.
    """

    video: str
    frames: int
    j: Scores | None
    f: Scores | None
    empty: NDArray[np.bool_]
    missing: tuple[tuple[str, ...], ...]
    png: tuple[tuple[str, bytes], ...]


def score_chunk(chunk: Chunk) -> ChunkScores:
    """Load masks and ground truth, and compare them. Raises InputError as the two readers."""
    video, masks = chunk.video, chunk.masks.load(chunk.video)
    j, f = None, None
    if video.annotation is not None:
        compare = _against_union if chunk.objects is None else _against_objects
        j, f = compare(chunk, masks)
    names = [
        [prediction_name(video, e, t) for t in range(len(video.frames))] for e in range(len(masks))
    ]
    stored = [
        (name, mask)
        for row, line in zip(names, masks, strict=True)
        for name, mask in zip(row, line, strict=True)
    ]
    return ChunkScores(
        video.name,
        len(video.frames),
        j,
        f,
        np.array([not any(m is not None and m.any() for m in line) for line in masks], np.bool_),
        tuple(
            tuple(name for name, mask in zip(row, line, strict=True) if mask is None)
            for row, line in zip(names, masks, strict=True)
        ),
        tuple((name, encode_png(m)) for name, m in stored if m is not None) if chunk.png else (),
    )


def encode_png(mask: Mask) -> bytes:
    """Encode a mask for the challenge servers: 8-bit, 0 or 255."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return file.getvalue()


def _against_union(chunk: Chunk, masks: list[list[Mask | None]]) -> tuple[Scores, Scores]:
    video = chunk.video
    rows = [
        _compare(line, video.union_masks(expression))
        for expression, line in zip(video.expressions, masks, strict=True)
    ]
    j, f = np.array(rows).reshape(len(rows), 2, len(video.frames)).swapaxes(0, 1)
    return j, f


def _against_objects(chunk: Chunk, masks: list[list[Mask | None]]) -> tuple[Scores, Scores]:
    video, objects = chunk.video, chunk.objects or ()
    assert video.annotation is not None
    truths = video.annotation.masks(objects, range(len(video.frames)), video.size)
    empty: list[Mask | None] = [np.zeros(video.size, np.bool_)] * len(video.frames)
    rows = [[_compare(line, truth) for truth in truths] for line in [*masks, empty]]
    shape = (len(rows), len(objects), 2, len(video.frames))
    j, f = np.moveaxis(np.array(rows).reshape(shape), 2, 0)
    return j, f


def _compare(line: list[Mask | None], truth: NDArray[np.bool_]) -> Scores:
    """Return J and F [2, T] of the frames of one prediction; a missing mask has 0."""
    empty = np.zeros(truth.shape[1:], np.bool_)
    scores = frame_scores(np.stack([empty if m is None else m for m in line]), truth)
    found = np.array([mask is not None for mask in line])
    both: Scores = np.stack([scores.j, scores.f]) * found
    return both


def map_in_order(
    score: Callable[[Work], Result], chunks: Iterable[Work], jobs: int
) -> Iterator[Result]:
    """Score chunks in ``jobs`` processes; yield results in the order of the chunks.

    Few chunks wait at a time, so a slow consumer costs no memory. With more than one job, a script
    must guard its main code by ``if __name__ == "__main__"``, and ``score`` must be a function of a
    module.
    """
    if jobs <= 1:
        yield from map(score, chunks)
        return
    with WorkerPool(jobs) as pool:
        waiting: deque[Future[Result]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(score, chunk))
            while len(waiting) > 2 * jobs or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
