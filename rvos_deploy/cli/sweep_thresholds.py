"""Print scores by threshold, and the best ones: ``rvos-deploy evaluate --sweep-threshold``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rvos_deploy.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.cli.evaluation_request import EvaluationRequest

_SCORES = {"j_and_f": "J&F", "n_acc": "N-acc", "t_acc": "T-acc"}
_FALLBACKS = {
    "none": "none (if no query passes, the mask is empty)",
    "top1": "top1 (if no query passes, the mask is the best query's, at every threshold)",
}


def parse_scores(text: str | None) -> tuple[float, ...] | None:
    """Parse thresholds from a list like ``0.2,0.3``. Raises InputError: another form."""
    if text is None:
        return None
    try:
        scores = tuple(float(part) for part in text.split(","))
    except ValueError:
        scores = ()
    if not scores or not all(0 <= score <= 1 for score in scores):
        raise InputError(
            f"--sweep-at '{text}' is not a list of scores in 0..1; write, for example, 0.2,0.3,0.4"
        )
    return scores


def sweep(
    request: EvaluationRequest, at: Sequence[float] | None, json: Path | None, csv: Path | None
) -> None:
    """Score a bundle at many thresholds, print the table, and write the requested files."""
    from rvos_deploy.console.output import frame_progress
    from rvos_deploy.evaluation.evaluate import ScoringOptions
    from rvos_deploy.evaluation.sweep_report import sweep_report, write_sweep_csv
    from rvos_deploy.evaluation.threshold_sweep import GRID, sweep_thresholds
    from rvos_deploy.json_file import write_json

    settings = request.settings("online")
    request.rules.overlaps(request.overlaps)  # refuses a wrong choice before the bundle is loaded
    split = request.rules.read(request.data)
    with request.load() as segmenter, frame_progress() as progress:
        for note in segmenter.bundle.network.notes(settings):
            typer.echo(f"note: {note}", err=True)
        swept = sweep_thresholds(
            segmenter,
            split,
            request.protocol,
            settings,
            options=ScoringOptions(overlaps=request.overlaps, jobs=request.jobs, progress=progress),
            at=GRID if at is None else at,
        )
        result = sweep_report(swept, segmenter)
    _print(result, request)
    if json is not None:
        write_json(json, result)
    if csv is not None:
        write_sweep_csv(csv, result)


def _print(result: Mapping[str, Any], request: EvaluationRequest) -> None:
    from rvos_deploy.console.output import choice_lines, counted, overlaps_line, result_console

    modes = result["modes"]
    result_console().print(_table(modes))
    online = modes["online"]["settings"]
    typer.echo(
        f"{counted(result['videos'], 'video')}, {counted(result['frames'], 'frame')} of "
        f"{result['data']}, {result['protocol']}: {result['seconds']:.1f} s, one pass"
    )
    typer.echo(
        f"online: lookahead {online['lookahead']}, memory {online['memory']}, anchors "
        f"{online['anchors']}; offline: all frames"
    )
    typer.echo(f"fallback {_FALLBACKS[online['fallback']]}")
    if request.rules.groups is not None:
        typer.echo(overlaps_line(online))
    for line in choice_lines(result["versions"]["backend"]):
        typer.echo(line)
    for mode, found in modes.items():
        best, own = (_j_and_f(found, found[name]) for name in ("best", "own"))
        same = found["best"] == found["own"]
        compared = "the bundle's own" if same else f"the bundle's own {found['own']}: {own:.4f}"
        typer.echo(f"best {mode} {found['best']}: J&F {best:.4f} ({compared})")
    typer.echo("Choose thresholds on videos whose scores you do not report. To set these values:")
    for line in _commands(request.predictions, modes):
        typer.echo(line)


def _commands(bundle: Path, modes: Mapping[str, Any]) -> list[str]:
    """Return shell commands that set the best thresholds; a packaged bundle is copied first."""
    from rvos_deploy.bundle.folder import find_bundle, packaged_bundles

    folder, target, lines = find_bundle(bundle), bundle, []
    if folder.resolve() in {path.resolve() for path in packaged_bundles().values()}:
        target = Path(f"my-{folder.resolve().name}")
        lines.append(f"cp -r {shlex.quote(str(folder))} {shlex.quote(str(target))}")
    values = " ".join(f"--{mode} {found['best']}" for mode, found in modes.items())
    return [*lines, f"rvos-deploy set-threshold {shlex.quote(str(target))} {values}"]


def _j_and_f(found: Mapping[str, Any], threshold: float) -> float:
    value: float = next(r["j_and_f"] for r in found["rows"] if r["threshold"] == threshold)
    return value


def _shown(threshold: float) -> str:
    """Format a threshold with at least two decimals: ``0.30``, ``0.437``."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else str(threshold)


def _table(modes: Mapping[str, Any]) -> Table:
    """Make a table with a row for each threshold: the scores of both modes, and a note."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("\nthreshold", justify="right", no_wrap=True)
    rows = next(iter(modes.values()))["rows"]
    keys = [key for key in _SCORES if any(row[key] is not None for row in rows)]
    for mode in modes:
        for number, key in enumerate(keys):
            title = f"{'' if number else mode}\n{_SCORES[key]}"
            table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for index, row in enumerate(rows):
        cells, notes = [], []
        for mode, found in modes.items():
            style = "bold" if found["best"] == row["threshold"] else ""
            for key in keys:
                value = found["rows"][index][key]
                cells.append(f"[{style}]{value:.4f}[/]" if style else f"{value:.4f}")
            names = {"best": f"best {mode}", "own": f"own {mode}"}
            notes += [note for name, note in names.items() if found[name] == row["threshold"]]
        table.add_row(_shown(row["threshold"]), *cells, ", ".join(notes))
    return table
