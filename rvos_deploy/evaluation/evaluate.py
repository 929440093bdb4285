"""Score predictions against ground truth by the rules of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvos_deploy.datasets import DataSplit, VideoRecord
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.choices import Overlaps
from rvos_deploy.evaluation.predictions import (
    NetworkPredictions,
    Predict,
    PredictionFolder,
    Predictions,
)
from rvos_deploy.evaluation.protocols import (
    ExpressionScore,
    Protocol,
    VideoScores,
    protocol_named,
)
from rvos_deploy.evaluation.scoring import Chunk, ChunkScores, Scores, map_in_order, score_chunk
from rvos_deploy.evaluation.submission import Submission
from rvos_deploy.progress import CountProgress, ignore_counts


@dataclass(frozen=True)
class ScoringOptions:
    """Choose how masks are scored.

    Args:
        jobs: processes for J and F. With more than one, a script must guard its main code by
            ``if __name__ == "__main__"``.
        progress: called with the phase "scores" after every few frames, and with the phase
            "frames" after each frame that a bundle segments.
        overlaps: for a bundle's masks: ``argmax`` or ``keep``; None: the protocol's choice. Masks
            from a folder are never changed.
    """

    jobs: int = 1
    progress: CountProgress = ignore_counts
    overlaps: Overlaps | None = None


DEFAULT_OPTIONS = ScoringOptions()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Hold the scores of an evaluation; ``report`` writes them with the shared keys.

    Args:
        protocol: name of the protocol.
        split: the evaluated split.
        scores: one for each expression; empty without ground truth.
        missing: videos, expressions or frames without a prediction, as in the submission layout.
        seconds: wall-clock time, inference included.
    """

    protocol: str
    split: DataSplit
    scores: tuple[ExpressionScore, ...]
    missing: tuple[str, ...]
    seconds: float


def evaluate(
    predictions: str | Path | Predict,
    data: str | Path | DataSplit,
    protocol: str = "mevis",
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    submission: str | Path | None = None,
) -> Evaluation:
    """Score predictions as a benchmark does.

    Args:
        predictions: a folder in the submission layout (``<video>/<expression>/<frame>.png``), or a
            function that returns the masks of a video (see ``bundle_masks``).
        data: the folder of one split, its list of expressions, or the split that a reader returned.
        protocol: ``mevis``, ``ref-youtube-vos`` or ``ref-davis``.
        options: how masks are scored.
        submission: a zip file to write, in the form that the benchmark's server accepts.

    Raises:
        InputError: data or predictions are damaged, sizes differ, or there is neither ground truth
            nor a submission to write.
    """
    started = time.perf_counter()
    rules = protocol_named(protocol)
    split = data if isinstance(data, DataSplit) else rules.read(Path(data))
    check_split(rules, split, submits=submission is not None)
    source = _source(predictions, split)
    with ExitStack() as stack:
        writer = None
        if submission is not None:
            root = rules.submission_root or ""
            writer = stack.enter_context(Submission(Path(submission), root))
        chunks = _chunks(split, source, rules, png=writer is not None)
        rows, missing = _collect(
            split, rules, map_in_order(score_chunk, chunks, options.jobs), writer, options.progress
        )
    return Evaluation(protocol, split, rows, missing, time.perf_counter() - started)


def check_split(rules: Protocol, split: DataSplit, *, submits: bool = False) -> None:
    """Check before the run that a split can be scored or submitted. Raises InputError if not."""
    if not any(video.expressions for video in split.videos):
        raise InputError(f"{split.meta} lists no expression; there is nothing to evaluate")
    if submits and rules.submission_root is None:
        raise InputError(
            f"no server takes submissions of {rules.name}: its ground truth is public; leave out "
            "--submission"
        )
    if not submits and not split.has_truth:
        raise InputError(
            f"{split.meta} has no ground truth, so nothing can be scored here; write a file for "
            "the benchmark's server with --submission FILE.zip"
        )
    if rules.groups is not None:
        for video in split.videos:
            rules.groups(video)


def _source(predictions: str | Path | Predict, split: DataSplit) -> Predictions:
    if not isinstance(predictions, (str, Path)):
        return NetworkPredictions(predictions)
    folder = PredictionFolder(Path(predictions))
    folder.check(split.videos)
    return folder


def _chunks(
    split: DataSplit, source: Predictions, rules: Protocol, *, png: bool
) -> Iterator[Chunk]:
    for video in split.videos:
        if not video.expressions:
            continue
        objects = None
        if rules.objects is not None and video.annotation is not None:
            objects = rules.objects(video)
        for start, stop, masks in source.chunks(video):
            yield Chunk(video.part(start, stop), masks, objects, png)


def _collect(
    split: DataSplit,
    rules: Protocol,
    results: Iterator[ChunkScores],
    writer: Submission | None,
    progress: CountProgress,
) -> tuple[tuple[ExpressionScore, ...], tuple[str, ...]]:
    """Join the chunks of each video, score it, and write its files to the submission."""
    videos = [video for video in split.videos if video.expressions]
    total, done = sum(len(video.frames) for video in videos), 0
    rows: list[ExpressionScore] = []
    missing: list[str] = []
    for video in videos:
        parts: list[ChunkScores] = []
        while sum(part.frames for part in parts) < len(video.frames):
            parts.append(part := next(results))
            done += part.frames
            if writer is not None:
                writer.add(part.png)
            progress("scores", done, total)
        joined = _missing(parts)
        missing += _coarsest(video, joined)
        j, f = (_join([part.j for part in parts]), _join([part.f for part in parts]))
        if j is not None and f is not None:
            empty = np.logical_and.reduce([part.empty for part in parts])
            rows += rules.score(VideoScores(video, j, f, empty, joined))
    return tuple(rows), tuple(missing)


def _join(parts: list[Scores | None]) -> Scores | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known, axis=-1) if known else None


def _missing(parts: list[ChunkScores]) -> tuple[tuple[str, ...], ...]:
    rows = zip(*(part.missing for part in parts), strict=True)
    return tuple(tuple(name for names in row for name in names) for row in rows)


def _coarsest(video: VideoRecord, missing: tuple[tuple[str, ...], ...]) -> list[str]:
    """Return the shortest names of missing predictions: the video, expressions, or frames."""
    frames = len(video.frames)
    if all(len(names) == frames for names in missing):
        return [video.name]
    named: list[str] = []
    for expression, names in zip(video.expressions, missing, strict=True):
        whole = len(names) == frames
        named += [f"{video.name}/{expression.id}"] if whole else list(names)
    return named
