"""Report an evaluation with the shared keys, as JSON and CSV: means by kind, video, annotator."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rvos_deploy.environment import machine, versions
from rvos_deploy.evaluation.evaluate import Evaluation
from rvos_deploy.evaluation.protocols import ExpressionScore, protocol_named
from rvos_deploy.files import write_text

SCHEMA = "rvos-deploy/evaluate/1"

Row = dict[str, Any]

_COLUMNS = (
    "level",
    "video",
    "expression",
    "annotator",
    "object_id",
    "kind",
    "text",
    "j",
    "f",
    "j_and_f",
    "count",
    "frames",
    "missing_frames",
    "no_target",
    "predicted_empty",
)


def report(
    evaluation: Evaluation, settings: Mapping[str, Any], backend: Mapping[str, str] | None = None
) -> Row:
    """Return the report of an evaluation, ready for JSON, with J, F and J&F in 0..1.

    ``settings``: the source of the predictions. ``backend``: the back end that computed them, if
    known.

    ``n_acc`` is the share of expressions without a target whose masks are empty in every frame, by
    area (J&F cannot tell, because F of a full mask against an empty one is 1). ``t_acc`` is the
    share of expressions with a target that have a pixel. A missing mask makes an expression without
    a target wrong, and counts as empty for one with a target (see ``protocols``). The definitions
    are those of GRES (Liu et al., CVPR 2023; ReLA, refer_evaluation.py), which MeViS v2 adopts.
    They are None if the data set or the split has no such expressions.
    ``with_target`` repeats the means without the expressions that have no target.
    """
    scores = evaluation.scores
    accuracies = protocol_named(evaluation.protocol).accuracies
    videos = [video for video in evaluation.split.videos if video.expressions]
    return {
        "schema": SCHEMA,
        "command": "evaluate",
        "protocol": evaluation.protocol,
        "data": str(evaluation.split.meta),
        "settings": dict(settings),
        **accuracies_and_means(scores, accuracies=accuracies),
        "videos": len(videos),
        "frames": sum(len(video.frames) for video in videos),
        "by_annotator": _grouped(
            [s for s in scores if s.annotator is not None], lambda s: s.annotator
        ),
        "by_video": _grouped(scores, lambda s: s.video),
        "by_expression": [{**asdict(s), "j_and_f": s.j_and_f} for s in scores],
        "missing": list(evaluation.missing),
        "seconds": evaluation.seconds,
        "versions": {**versions("pillow", "scipy"), **({"backend": backend} if backend else {})},
        "machine": machine(),
    }


def accuracies_and_means(scores: Sequence[ExpressionScore], *, accuracies: bool = True) -> Row:
    """Return N-acc, T-acc and the means over all expressions, over those with a target, by kind."""
    return {
        **_means(scores),
        "n_acc": n_acc(scores) if accuracies else None,
        "t_acc": t_acc(scores) if accuracies else None,
        "with_target": _means([s for s in scores if not s.no_target]),
        "by_kind": _grouped([s for s in scores if s.kind is not None], lambda s: s.kind),
    }


def n_acc(scores: Iterable[ExpressionScore]) -> float | None:
    """Return the share of expressions without a target that were predicted empty in every frame.

    A frame without a mask file does not count as empty.
    """
    right = [s.predicted_empty and not s.missing_frames for s in scores if s.no_target]
    return sum(right) / len(right) if right else None


def t_acc(scores: Iterable[ExpressionScore]) -> float | None:
    """Return the share of expressions with a target that were not predicted empty."""
    right = [not s.predicted_empty for s in scores if not s.no_target]
    return sum(right) / len(right) if right else None


def _means(scores: Sequence[ExpressionScore]) -> Row:
    if not scores:
        return {"j": None, "f": None, "j_and_f": None, "count": 0}
    j = sum(s.j for s in scores) / len(scores)
    f = sum(s.f for s in scores) / len(scores)
    return {"j": j, "f": f, "j_and_f": (j + f) / 2, "count": len(scores)}


def _grouped(
    scores: Sequence[ExpressionScore], key: Callable[[ExpressionScore], object]
) -> dict[str, Row]:
    groups: dict[str, list[ExpressionScore]] = {}
    for score in scores:
        groups.setdefault(str(key(score)), []).append(score)
    return {name: _means(groups[name]) for name in sorted(groups)}


def write_csv(path: Path, result: Row) -> None:
    """Write a report as one table; each line is a mean over its ``level``.

    Levels: overall, kind, annotator, video, expression. The file is complete or absent (see
    ``files.writing``).

    Raises:
        InputError: the file cannot be written there.
    """
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerow({"level": "overall", **{k: result[k] for k in ("j", "f", "j_and_f", "count")}})
    for level in ("kind", "annotator", "video"):
        for name, means in result[f"by_{level}"].items():
            table.writerow({"level": level, level: name, **means})
    for row in result["by_expression"]:
        table.writerow({"level": "expression", "count": 1, **row})
    write_text(path, file.getvalue())
