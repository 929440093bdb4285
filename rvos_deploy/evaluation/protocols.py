"""How each benchmark turns J and F of frames into the score of a video's expressions.

- ``mevis``: every frame counts; the union of an expression's objects is the truth; means over the
  frames, then over the expressions (MeViS, tools/eval_mevis.py).
- ``ref-youtube-vos``: the same, with one object an expression.
- ``ref-davis``: the DAVIS 2017 unsupervised protocol (davis2017/evaluation.py), once for each
  annotator. An annotator's masks are the proposals; they are assigned to the objects so that J&F is
  best; the mean is over the objects, then over the annotators. Every frame counts. Objects that
  nobody described count too, with an empty mask where no proposal is left for them. An annotator's
  masks form one multi-object prediction: each pixel belongs to the object with the greatest mask
  logit above 0, as in ReferFormer (inference_davis.py) and the methods that follow it.

What is missing in a folder of predictions counts as wrong, everywhere:

- J = F = 0 for every frame without a mask file, also where the truth is empty. MeViS' script gives
  a missing video 0 and stops with an error at any other missing mask; here those count 0 and are
  named, so that a score exists and is never better than the prediction.
- N-acc: an expression without a target is right only when all its mask files are there, and all of
  them are empty. A missing mask says nothing; it does not say "no target".
- T-acc: an expression with a target is wrong when no file of it shows a pixel: when all are missing
  or empty. One mask with a pixel makes it right, whatever else is missing.
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
    """All chunks of a video, joined: as ``ChunkScores``, over all its T frames."""

    video: VideoRecord
    j: Scores
    f: Scores
    empty: NDArray[np.bool_]
    missing: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ExpressionScore:
    """What one expression scored (ref-davis: one object for one annotator).

    Args:
        video: the video's name.
        expression: the expression's id; None for an object that nobody described.
        text: the sentence.
        kind: its kind, or None.
        j: mean J over the frames, 0..1.
        f: mean F over the frames, 0..1.
        frames: how many.
        missing_frames: how many have no prediction; they count 0 (see the module).
        no_target: whether the expression means nothing.
        predicted_empty: whether no pixel of any frame was predicted.
        annotator: ref-davis: which set, from 0.
        object_id: ref-davis: which object.
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
        """(J + F) / 2."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class Protocol:
    """A benchmark's rules.

    Args:
        name: as on the command line.
        read: reads one of its splits.
        score: expressions from frames.
        objects: the objects to compare each expression with; None for the union that it means.
        fallback: what a network gives when no query passes: every expression of the older
            benchmarks has a target, so there the best query answers.
        accuracies: whether expressions may mean nothing, so N-acc and T-acc say something.
        groups: rows of the expressions that form one multi-object prediction, in which no pixel
            belongs to two; raises InputError for a video that cannot be scored. None: every
            expression is an answer of its own.
        submission_root: the folder inside a submission that holds the videos ("" for none); None
            where no server takes submissions.
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
        """What is done with pixels that several objects claim; None: what the benchmark does.

        Raises InputError: argmax, where every expression is an answer of its own.
        """
        if asked == "argmax" and self.groups is None:
            raise InputError(
                f"overlaps have no meaning in {self.name}, where every expression is an answer of "
                "its own; leave out --overlaps argmax"
            )
        return asked or ("keep" if self.groups is None else "argmax")


def protocol_named(name: str) -> Protocol:
    """A protocol by name. InputError for any other name."""
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol '{name}'; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def score_expressions(scores: VideoScores) -> list[ExpressionScore]:
    """Each expression against the union of what it means: means over the frames."""
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
    """The kind of an expression in data sets that name none."""
    return ("no_target", "one_target", "several_targets")[min(len(object_ids), 2)]


def score_objects(scores: VideoScores) -> list[ExpressionScore]:
    """Each object for each annotator, proposals assigned to objects so that J&F is best."""
    return [
        row
        for annotator, proposals in enumerate(annotator_sets(scores.video))
        for row in _score_set(scores, annotator, proposals)
    ]


def annotator_sets(video: VideoRecord) -> list[list[int]]:
    """Rows of the expressions of each annotator: the n-th expression of an object is the n-th's.

    InputError when the objects are not described equally often.
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
    nothing = len(video.expressions)  # the row of an empty mask
    rows = np.array(proposals + [nothing] * (len(objects) - len(proposals)))
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
    """One object: the scores of its proposal, under the name of the expression that means it."""
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
    """Objects that DAVIS evaluates: 1 .. the highest index of the first annotated frame."""
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
