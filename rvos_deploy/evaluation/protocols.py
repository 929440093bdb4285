"""Define how each benchmark turns J and F of frames into the scores of a video's expressions.

- ``mevis``: every frame counts. The union of an expression's objects is the ground truth. Means are
  over the frames, then over the expressions (MeViS, tools/eval_mevis.py).
- ``ref-youtube-vos``: as ``mevis``, with one object per expression.
- ``ref-davis``: the DAVIS 2017 unsupervised protocol (davis2017/evaluation.py), once per annotator.
  An annotator's masks are the proposals, which are assigned to the objects so that J&F is best. The
  mean is over the objects, then over the annotators. Every frame counts. Objects without a
  description count too, with an empty mask if no proposal is left. An annotator's masks form one
  multi-object prediction: each pixel belongs to the object with the greatest mask logit above 0, as
  in ReferFormer (inference_davis.py) and the methods that follow it.

A missing prediction in a folder always counts as wrong:

- J = F = 0 for every frame without a mask file, also if the ground truth is empty. MeViS' script
  scores a missing video 0, and stops with an error at any other missing mask. Here those masks
  count 0 and are named, so a score exists and is never better than the prediction.
- N-acc: an expression without a target is right only if all its mask files exist and are empty. A
  missing mask does not mean "no target".
- T-acc: an expression with a target is wrong if all its files are missing or empty. One mask with a
  pixel makes it right, even if others are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets import (
    DataSplit,
    PaletteAnnotation,
    VideoRecord,
    read_mevis,
    read_ref_davis,
    read_ref_youtube_vos,
)
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.choices import Overlaps, ProtocolName
from rvos_deploy.stream_settings import Fallback

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VideoScores:
    """Hold all chunks of a video, joined: as ``ChunkScores``, over all its T frames."""

    video: VideoRecord
    j: Scores
    f: Scores
    empty: NDArray[np.bool_]
    missing: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ExpressionScore:
    """Hold the score of one expression (ref-davis: of one object for one annotator).

    Args:
        video: name of the video.
        expression: id of the expression; None for an object without a description.
        text: text of the expression.
        kind: kind of the expression, or None.
        j: mean J over the frames, 0..1.
        f: mean F over the frames, 0..1.
        frames: number of frames.
        missing_frames: number of frames without a prediction; they count 0 (see the module).
        no_target: whether the expression has no target.
        predicted_empty: whether no pixel of any frame was predicted.
        annotator: ref-davis: index of the annotator, from 0.
        object_id: ref-davis: key of the object.
    """

    video: str
    expression: str | None
    text: str | None
    kind: str | None
    j: float
    f: float
    frames: int
    missing_frames: int
    no_target: bool
    predicted_empty: bool
    annotator: int | None = None
    object_id: int | None = None

    @property
    def j_and_f(self) -> float:
        """Return (J + F) / 2."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class Protocol:
    """Hold the rules of a benchmark.

    Args:
        name: name on the command line.
        read: reads one of its splits.
        score: computes scores of expressions from those of frames.
        objects: returns the objects to compare each expression with; None: the union of an
            expression's targets.
        fallback: a network's answer when no query passes. Every expression of the older benchmarks
            has a target, so there the best query answers.
        accuracies: whether expressions may have no target, so that N-acc and T-acc are defined.
        groups: returns the rows of the expressions that form one multi-object prediction, in which
            a pixel belongs to one object; raises InputError for a video that cannot be scored.
            None: every expression is an answer of its own.
        submission_root: the folder of the videos inside a submission ("" for none); None: no server
            accepts submissions.
    """

    name: ProtocolName
    read: Callable[[Path], DataSplit]
    score: Callable[[VideoScores], list[ExpressionScore]]
    objects: Callable[[VideoRecord], tuple[int, ...]] | None = None
    fallback: Fallback = "none"
    accuracies: bool = False
    groups: Callable[[VideoRecord], list[list[int]]] | None = None
    submission_root: str | None = None

    def overlaps(self, asked: Overlaps | None = None) -> Overlaps:
        """Return the treatment of pixels that several objects claim; None: the benchmark's own.

        Raises InputError: argmax, although every expression is an answer of its own.
        """
        if asked == "argmax" and self.groups is None:
            raise InputError(
                f"overlaps have no meaning in {self.name}, where every expression is an answer of "
                "its own; leave out --overlaps argmax"
            )
        return asked or ("keep" if self.groups is None else "argmax")


def protocol_named(name: str) -> Protocol:
    """Return a protocol by name. Raises InputError: the name is unknown."""
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol '{name}'; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def score_expressions(scores: VideoScores) -> list[ExpressionScore]:
    """Score each expression against the union of its targets: means over the frames."""
    video = scores.video
    return [
        ExpressionScore(
            video.name,
            expression.id,
            expression.text,
            expression.kind or _count_of_targets(expression.object_ids or ()),
            float(scores.j[row].mean()),
            float(scores.f[row].mean()),
            len(video.frames),
            len(scores.missing[row]),
            not expression.targets,
            bool(scores.empty[row]),
        )
        for row, expression in enumerate(video.expressions)
    ]


def _count_of_targets(object_ids: tuple[int, ...]) -> str:
    """Return the kind of an expression in data sets that state none."""
    return ("no_target", "one_target", "several_targets")[min(len(object_ids), 2)]


def score_objects(scores: VideoScores) -> list[ExpressionScore]:
    """Score each object for each annotator; proposals are assigned so that J&F is best."""
    return [
        row
        for annotator, proposals in enumerate(annotator_sets(scores.video))
        for row in _score_set(scores, annotator, proposals)
    ]


def annotator_sets(video: VideoRecord) -> list[list[int]]:
    """Return each annotator's rows: the n-th expression of every object is from annotator n.

    Raises InputError: objects have different numbers of expressions.
    """
    by_object: dict[int, list[int]] = {}
    for row, expression in enumerate(video.expressions):
        by_object.setdefault((expression.object_ids or (0,))[0], []).append(row)
    counts = {key: len(rows) for key, rows in by_object.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"object {key}: {count}" for key, count in sorted(counts.items()))
        raise InputError(
            f"video {video.name}: every annotator must describe every object, but expressions are "
            f"{found}"
        )
    return [list(rows) for rows in zip(*by_object.values(), strict=True)]


def _score_set(scores: VideoScores, annotator: int, proposals: list[int]) -> list[ExpressionScore]:
    from scipy.optimize import linear_sum_assignment

    video, objects = scores.video, objects_of_first_frame(scores.video)
    empty_row = len(video.expressions)
    rows = np.array(proposals + [empty_row] * (len(objects) - len(proposals)))
    quality = (scores.j[rows].mean(axis=2) + scores.f[rows].mean(axis=2)) / 2
    chosen, columns = linear_sum_assignment(quality, maximize=True)
    given = {int(column): int(rows[row]) for row, column in zip(chosen, columns, strict=True)}
    described = {(video.expressions[row].object_ids or (0,))[0]: row for row in proposals}
    return [
        _object_score(scores, annotator, key, column, given[column], described.get(key))
        for column, key in enumerate(objects)
    ]


def _object_score(
    scores: VideoScores,
    annotator: int,
    key: int,
    column: int,
    proposal: int,
    described: int | None,
) -> ExpressionScore:
    """Return the scores of an object's proposal, named after the expression of the object."""
    video = scores.video
    expression = None if described is None else video.expressions[described]
    is_mask = proposal < len(video.expressions)
    return ExpressionScore(
        video.name,
        None if expression is None else expression.id,
        None if expression is None else expression.text,
        None,
        float(scores.j[proposal, column].mean()),
        float(scores.f[proposal, column].mean()),
        len(video.frames),
        len(scores.missing[proposal]) if is_mask else 0,
        False,
        bool(scores.empty[proposal]) if is_mask else True,
        annotator,
        key,
    )


def objects_of_first_frame(video: VideoRecord) -> tuple[int, ...]:
    """Return DAVIS' evaluated objects: 1 to the highest index of the first annotated frame."""
    if not isinstance(video.annotation, PaletteAnnotation):
        raise InputError(f"video {video.name} has no palette annotation; ref-davis needs it")
    highest = int(video.annotation.indices(0).max())
    if not highest:
        raise InputError(f"{video.annotation.files[0]} shows no object; DAVIS counts them there")
    return tuple(range(1, highest + 1))


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("mevis", read_mevis, score_expressions, accuracies=True, submission_root=""),
        Protocol(
            "ref-youtube-vos",
            read_ref_youtube_vos,
            score_expressions,
            fallback="top1",
            submission_root="Annotations/",
        ),
        Protocol(
            "ref-davis",
            read_ref_davis,
            score_objects,
            objects=objects_of_first_frame,
            fallback="top1",
            groups=annotator_sets,
        ),
    )
}
