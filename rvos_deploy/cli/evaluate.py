"""``rvos-deploy evaluate``: J and F on a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvos_deploy.cli.run import FallbackName, ModeName
from rvos_deploy.console.options import (
    BackendName,
    BackendOption,
    Device,
    DeviceOption,
    JsonOption,
    SizeOption,
    ThreadsOption,
    check_outputs,
    parse_size,
)

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.evaluation.evaluate import Evaluation

_NAMED = 5
"""Missing predictions that are printed; the JSON file names all."""


class ProtocolName(str, Enum):
    """Benchmarks by name."""

    mevis = "mevis"
    ref_youtube_vos = "ref-youtube-vos"
    ref_davis = "ref-davis"


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|PREDICTIONS",
            help="A bundle, or a folder of masks: <video>/<expression>/<frame>.png.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of one split, or its meta_expressions*.json. Of two versions in a folder, "
            "v2 is read.",
        ),
    ],
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            "--protocol", metavar="NAME", help="Whose rules: mevis, ref-youtube-vos or ref-davis."
        ),
    ] = ProtocolName.mevis,
    mode: Annotated[
        ModeName | None,
        typer.Option("--mode", help="Bundle: as in 'run'. Default: offline."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="SCORE",
            help="Bundle: score a query must pass, 0 to 1. Default: the model's own.",
        ),
    ] = None,
    lookahead: Annotated[
        int | None,
        typer.Option("--lookahead", metavar="N", min=0, help="Bundle: as in 'run'. Default: 0."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            metavar="N",
            min=1,
            help="Bundle: as in 'run'. Default: 64 online, all offline.",
        ),
    ] = None,
    anchors: Annotated[
        int | None,
        typer.Option("--anchors", metavar="N", min=0, help="Bundle: as in 'run'. Default: 0."),
    ] = None,
    fallback: Annotated[
        FallbackName | None,
        typer.Option(
            "--fallback",
            help="Bundle: when no query passes: empty, or the best. Default: none for mevis, top1 "
            "for the others, whose expressions all have a target.",
        ),
    ] = None,
    size: SizeOption = None,
    backend: BackendOption = BackendName.auto,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", metavar="N", min=1, help="Processes for J and F. Default: all cores."
        ),
    ] = None,
    json: JsonOption = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="The same as one table.")
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            "--submission", metavar="FILE.zip", help="Write what the benchmark's server takes."
        ),
    ] = None,
) -> None:
    """Score a bundle, or masks that were written before, as a benchmark does."""
    from rvos_deploy.bundle.folder import bundle_files, find_bundle
    from rvos_deploy.console.output import frame_progress
    from rvos_deploy.environment import usable_cores
    from rvos_deploy.evaluation.evaluate import evaluate as evaluate_folder
    from rvos_deploy.evaluation.report import report, write_csv
    from rvos_deploy.json_file import write_json

    options = {
        "mode": mode,
        "lookahead": lookahead,
        "memory": memory,
        "anchors": anchors,
        "threshold": threshold,
        "fallback": fallback,
        "size": size,
    }
    workers = jobs or usable_cores()
    folder = find_bundle(predictions)
    is_bundle = (folder / "manifest.json").is_file()
    read = bundle_files(folder) if is_bundle else [predictions]
    check_outputs([json, csv, submission], [*read, data])
    if is_bundle:
        evaluation, settings, ran_on = _run_bundle(
            predictions, data, protocol, options, (backend, device, threads), workers, submission
        )
    else:
        _refuse_options(predictions, options)
        with frame_progress() as progress:
            evaluation = evaluate_folder(
                predictions,
                data,
                protocol.value,
                jobs=workers,
                submission=submission,
                progress=progress,
            )
        settings, ran_on = {"predictions": str(predictions)}, None
    result = report(evaluation, settings, ran_on)
    _print(result, submission)
    _warn_of_missing(evaluation, predictions)
    if json is not None:
        write_json(json, result)
    if csv is not None:
        write_csv(csv, result)


def _run_bundle(
    bundle: Path,
    data: Path,
    protocol: ProtocolName,
    options: Mapping[str, Any],
    runs_on: tuple[BackendName, Device, int | None],
    jobs: int,
    submission: Path | None,
) -> tuple[Evaluation, dict[str, Any], dict[str, str]]:
    """Evaluate a bundle: what came of it, how it was run, and on what."""
    from rvos_deploy.console.output import frame_progress
    from rvos_deploy.evaluation.bundle_masks import bundle_settings, evaluate_bundle
    from rvos_deploy.evaluation.protocols import protocol_named
    from rvos_deploy.runtime.segmenter import load
    from rvos_deploy.stream_settings import StreamSettings

    rules = protocol_named(protocol.value)
    mode, fallback = options["mode"], options["fallback"]
    settings = StreamSettings(
        mode=mode.value if mode else "offline",
        lookahead=options["lookahead"] or 0,
        memory=options["memory"],
        anchors=options["anchors"] or 0,
        fallback=fallback.value if fallback else rules.fallback,
        threshold=options["threshold"],
        size=parse_size(options["size"]),
    )
    split = rules.read(data)  # before the bundle: loading a large one takes a while
    backend, device, threads = runs_on
    with (
        load(bundle, backend=backend.value, device=device.value, threads=threads) as segmenter,
        frame_progress() as progress,
    ):
        evaluation = evaluate_bundle(
            segmenter,
            split,
            protocol.value,
            settings,
            jobs=jobs,
            submission=submission,
            progress=progress,
        )
        return evaluation, bundle_settings(segmenter, settings), segmenter.backend.describe()


def _refuse_options(predictions: Path, options: Mapping[str, object]) -> None:
    from rvos_deploy.errors import InputError

    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{predictions} is no bundle (it has no manifest.json), and {given[0]} has no meaning "
            "for masks that were written before; leave it out"
        )


def _print(result: Mapping[str, Any], submission: Path | None) -> None:
    from rvos_deploy.console.output import counted, result_console

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
    if submission is not None:
        typer.echo(f"wrote {submission}")


def _warn_of_missing(evaluation: Evaluation, predictions: Path) -> None:
    """One line on standard error: how much is missing, and what may be misnamed."""
    from rvos_deploy.evaluation.mismatch import strays

    if not (missing := evaluation.missing):
        return
    videos = evaluation.split.videos
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    line = f"{_missing_counts(evaluation)} ({', '.join(missing[:_NAMED])}{more}) and count 0"
    if predictions.is_dir() and (found := strays(predictions, videos, missing)):
        line += f"; nobody asked for {', '.join(found)}"
    typer.echo(f"warning: {line}", err=True)


def _missing_counts(evaluation: Evaluation) -> str:
    """``3 of 12 expressions have no masks, 2 masks of others are missing``."""
    from rvos_deploy.console.output import counted

    sizes = {video.name: len(video.expressions) for video in evaluation.split.videos}
    depths = [name.count("/") for name in evaluation.missing]
    whole = sum(sizes[name] for name in evaluation.missing if "/" not in name) + depths.count(1)
    single = depths.count(2)
    said = []
    if whole:
        verb = "has" if whole == 1 else "have"
        said.append(f"{whole} of {counted(sum(sizes.values()), 'expression')} {verb} no masks")
    if single:
        verb = "is" if single == 1 else "are"
        said.append(f"{counted(single, 'mask')}{' of others' if whole else ''} {verb} missing")
    return ", ".join(said)


def _table(result: Mapping[str, Any]) -> Table:
    """J, F and J&F by kind (or annotator), and over all."""
    from rich.table import Table

    groups = result["by_annotator"] or result["by_kind"]
    first = "annotator" if result["by_annotator"] else "kind"
    table = Table(box=None, pad_edge=False, header_style="bold")
    rows = list(groups.items()) if len(groups) > 1 else []
    table.add_column(first if rows else "", no_wrap=True)
    for title in ("J", "F", "J&F", "count"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, means in [*rows, ("all", result)]:
        style = "bold" if name == "all" else ""
        table.add_row(
            name.replace("_", " "),
            *(f"{means[key]:.4f}" for key in ("j", "f", "j_and_f")),
            str(means["count"]),
            style=style,
        )
    return table
