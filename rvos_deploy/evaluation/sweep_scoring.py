"""Compute J and F at many thresholds; each different mask is scored once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets import VideoRecord
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.evaluation.scoring import Scores
from rvos_deploy.stream_settings import Mode


@dataclass(frozen=True, eq=False)
class SweptFrame:
    """Hold the masks of a frame at T thresholds, of which at most K differ.

    Args:
        bits: masks packed along their width: uint8 [K, E, H, ceil(W / 8)].
        answers: int64 [T, E], the index in K of an expression's mask at each threshold.
    """

    bits: NDArray[np.uint8]
    answers: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SweepChunk:
    """Hold frames of a video in one mode; ``video`` has only these; ``objects`` as in ``Chunk``."""

    mode: Mode
    video: VideoRecord
    frames: tuple[SweptFrame, ...]
    objects: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class SweepScores:
    """Hold the scores of a chunk of F frames, by threshold.

    Args:
        mode: mode of the stream.
        frames: F.
        j: [T, E, F], or [T, E + 1, K, F] against K objects, as in ``ChunkScores``.
        f: in the shape of ``j``.
        empty: [T, E], whether no pixel was predicted.
    """

    mode: Mode
    frames: int
    j: Scores
    f: Scores
    empty: NDArray[np.bool_]


def score_sweep_chunk(chunk: SweepChunk) -> SweepScores:
    """Load the ground truth and compare. Raises InputError as the reader of the ground truth."""
    video = chunk.video
    truths = None if chunk.objects is None else _object_masks(chunk, chunk.objects)
    rows, seen = [], []
    for row, expression in enumerate(video.expressions):
        known = video.union_masks(expression)[None] if truths is None else truths
        scores, visible = _score_expression(chunk.frames, row, known)
        rows.append(scores)
        seen.append(visible)
    if truths is not None:
        rows.append(np.broadcast_to(_score_empty_mask(truths)[:, None], rows[0].shape))
    both = np.stack(rows, axis=2)  # [2, T, E, K, F]
    j, f = both[:, :, :, 0] if truths is None else both
    return SweepScores(chunk.mode, len(chunk.frames), j, f, ~np.stack(seen, axis=1))


def _object_masks(chunk: SweepChunk, objects: tuple[int, ...]) -> NDArray[np.bool_]:
    video = chunk.video
    assert video.annotation is not None
    return video.annotation.masks(objects, range(len(video.frames)), video.size)


def _score_expression(
    frames: tuple[SweptFrame, ...], row: int, truths: NDArray[np.bool_]
) -> tuple[Scores, NDArray[np.bool_]]:
    """Return J and F [2, T, K, F] against truths [K, F, H, W], and whether a pixel was set [T]."""
    answers = np.stack([frame.answers[:, row] for frame in frames], axis=1)  # [T, F]
    counts = answers.max(axis=0) + 1
    scores = np.zeros((counts.max(), len(frames), 2, len(truths)))
    seen = np.zeros(scores.shape[:2], np.bool_)
    for answer in range(len(scores)):
        at = np.flatnonzero(counts > answer)
        packed = np.stack([frames[index].bits[answer, row] for index in at])
        masks = np.unpackbits(packed, axis=-1, count=truths.shape[-1]).view(np.bool_)
        seen[answer, at] = masks.any(axis=(1, 2))
        for column, truth in enumerate(truths):
            found = frame_scores(masks, truth[at])
            scores[answer, at, :, column] = np.stack([found.j, found.f], axis=1)
    every = np.arange(len(frames))
    chosen = scores[answers, every]  # [T, F, 2, K]
    visible: NDArray[np.bool_] = np.any(seen[answers, every], axis=1)
    return np.ascontiguousarray(chosen.transpose(2, 0, 3, 1)), visible


def _score_empty_mask(truths: NDArray[np.bool_]) -> Scores:
    """Return J and F of an empty mask: [2, K, F]."""
    empty = np.zeros(truths.shape[1:], np.bool_)
    found = [frame_scores(empty, truth) for truth in truths]
    return np.array([[one.j for one in found], [one.f for one in found]])
