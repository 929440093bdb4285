"""Print the results of ``evaluate``: the table of scores, and one line about missing masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rvos_deploy.console.output import (
    choice_lines,
    counted,
    number_table,
    overlaps_line,
    result_console,
)

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.evaluation.evaluate import Evaluation

_NAMED = 5
"""Number of missing predictions that are printed; the JSON file names all."""


def print_scores(result: Mapping[str, Any], submission: Path | None) -> None:
    """Print the table, the accuracies, and a summary of the evaluated data."""
    if result["j"] is not None:
        result_console().print(_table(result))
    if result["n_acc"] is not None:
        with_target = result["with_target"]["count"]
        shares = [
            f"N-acc {result['n_acc']:.4f} of {result['count'] - with_target} without a target"
        ]
        if with_target:
            shares.append(f"T-acc {result['t_acc']:.4f} of {with_target} with one")
        typer.echo(", ".join(shares))
    mode = result["settings"].get("mode")
    typer.echo(
        f"{counted(result['videos'], 'video')}, {counted(result['frames'], 'frame')} of "
        f"{result['data']}, {result['protocol']}{f', {mode}' if mode else ''}: "
        f"{result['seconds']:.1f} s"
    )
    if result["by_annotator"]:
        typer.echo(overlaps_line(result["settings"]))
    for line in choice_lines(result["versions"].get("backend")):
        typer.echo(line)
    if submission is not None:
        typer.echo(f"wrote {submission}")


def warn_of_missing(evaluation: Evaluation, predictions: Path) -> None:
    """Print one line on standard error: the missing masks, and names that may be wrong."""
    from rvos_deploy.evaluation.mismatch import unexpected_names
    from rvos_deploy.evaluation.protocols import protocol_named

    if not (missing := evaluation.missing):
        return
    videos = evaluation.split.videos
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    line = f"{_missing_counts(evaluation)} ({', '.join(missing[:_NAMED])}{more}) and count 0"
    if predictions.is_dir() and (found := unexpected_names(predictions, videos, missing)):
        line += f"; the split does not have {', '.join(found)}"
    if protocol_named(evaluation.protocol).accuracies and any(
        score.no_target and score.missing_frames for score in evaluation.scores
    ):
        line += "; N-acc counts empty masks, not missing ones"
    typer.echo(f"warning: {line}", err=True)


def _missing_counts(evaluation: Evaluation) -> str:
    """Return ``3 of 12 expressions have no masks, 2 masks of others are missing``."""
    sizes = {video.name: len(video.expressions) for video in evaluation.split.videos}
    depths = [name.count("/") for name in evaluation.missing]
    whole = sum(sizes[name] for name in evaluation.missing if "/" not in name) + depths.count(1)
    single = depths.count(2)
    parts = []
    if whole:
        verb = "has" if whole == 1 else "have"
        parts.append(f"{whole} of {counted(sum(sizes.values()), 'expression')} {verb} no masks")
    if single:
        verb = "is" if single == 1 else "are"
        parts.append(f"{counted(single, 'mask')}{' of others' if whole else ''} {verb} missing")
    return ", ".join(parts)


def _table(result: Mapping[str, Any]) -> Table:
    """Make the table of J, F and J&F by kind (or annotator) and over all expressions."""
    groups = result["by_annotator"] or result["by_kind"]
    first = "annotator" if result["by_annotator"] else "kind"
    rows = list(groups.items()) if len(groups) > 1 else []
    table = number_table((first if rows else "",), ("J", "F", "J&F", "count"))
    for name, means in [*rows, ("all", result)]:
        style = "bold" if name == "all" else ""
        table.add_row(
            name.replace("_", " "),
            *(f"{means[key]:.4f}" for key in ("j", "f", "j_and_f")),
            str(means["count"]),
            style=style,
        )
    return table
