"""Measure J and F on a benchmark: ``rvos-deploy evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvos_deploy.cli.evaluation_request import EvaluationRequest
from rvos_deploy.console.options import (
    AnchorsOption,
    BackendOption,
    DeviceOption,
    FallbackOption,
    JobsOption,
    JsonOption,
    LookaheadOption,
    MemoryOption,
    ModeOption,
    PrecisionHintOption,
    ShortSideOption,
    SizeOption,
    ThreadsOption,
    ThresholdOption,
)
from rvos_deploy.console.output_files import check_outputs
from rvos_deploy.console.stream_options import StreamOptions
from rvos_deploy.evaluation.choices import Overlaps, ProtocolName

if TYPE_CHECKING:
    from rvos_deploy.evaluation.evaluate import Evaluation

_SWEEP_PANEL = "Sweep of thresholds"


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
            help="Folder of one split, or the file that lists its expressions. If a folder holds "
            "two versions, v2 is read.",
        ),
    ],
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="Benchmark whose rules apply: mevis, ref-youtube-vos or ref-davis. In the last "
            "two, every expression has a target, so the default of --fallback is top1.",
        ),
    ] = "mevis",
    mode: ModeOption = None,
    lookahead: LookaheadOption = None,
    memory: MemoryOption = None,
    anchors: AnchorsOption = None,
    size: SizeOption = None,
    short_side: ShortSideOption = None,
    threshold: ThresholdOption = None,
    fallback: FallbackOption = None,
    overlaps: Annotated[
        Overlaps | None,
        typer.Option(
            "--overlaps",
            help="Objects that keep a pixel which several objects of one annotator claim. argmax: "
            "the object with the greatest mask logit; keep: all of them. Default: argmax for "
            "ref-davis, whose predictions hold all objects; keep for the others.",
        ),
    ] = None,
    sweep_threshold: Annotated[
        bool,
        typer.Option(
            "--sweep-threshold",
            rich_help_panel=_SWEEP_PANEL,
            help="Print J&F, N-acc and T-acc by threshold, offline and online, from one pass. "
            "--lookahead, --memory and --anchors apply online, --fallback at every threshold.",
        ),
    ] = False,
    sweep_at: Annotated[
        str | None,
        typer.Option(
            "--sweep-at",
            metavar="SCORES",
            rich_help_panel=_SWEEP_PANEL,
            help="Thresholds of the sweep, for example 0.2,0.3,0.4; the bundle's own thresholds "
            "are added. Default: 0.1 to 0.9 in steps of 0.05.",
        ),
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
    jobs: JobsOption = None,
    json: JsonOption = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Also write the scores to FILE as a table."),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            "--submission",
            metavar="FILE.zip",
            help="Also write the file that the benchmark's server accepts.",
        ),
    ] = None,
) -> None:
    """Score a bundle, or existing masks, by the rules of a benchmark.

    Options from --mode to --precision-hint apply to bundles. A missing mask counts as wrong:
    - J and F are 0 in its frame, even if the ground truth is empty.
    - N-acc: an expression without a target needs all its masks, and all of them empty.
    - T-acc: an expression with a target needs one mask that is not empty.
    """
    from rvos_deploy.bundle.folder import bundle_files, find_bundle
    from rvos_deploy.cli.evaluation_output import print_scores, warn_of_missing
    from rvos_deploy.environment import usable_cores
    from rvos_deploy.evaluation.report import report, write_csv
    from rvos_deploy.json_file import write_json

    stream = StreamOptions(mode, lookahead, memory, anchors, threshold, fallback, size, short_side)
    folder = find_bundle(predictions)
    is_bundle = (folder / "manifest.json").is_file()
    read = bundle_files(folder) if is_bundle else [predictions]
    check_outputs([json, csv, submission], [*read, data])
    workers = jobs or usable_cores()
    request = EvaluationRequest(
        predictions,
        data,
        protocol,
        stream,
        overlaps,
        backend,
        device,
        threads,
        precision_hint,
        workers,
    )
    if not is_bundle:
        _refuse_bundle_options(request, sweep_threshold, sweep_at)
    if sweep_threshold:
        from rvos_deploy.cli.sweep_thresholds import parse_scores, sweep

        _check_sweep(stream, submission)
        sweep(request, parse_scores(sweep_at), json, csv)
        return
    _refuse_scores_without_sweep(sweep_at)
    evaluated = (_run_bundle if is_bundle else _score_masks)(request, submission)
    evaluation, settings, ran_on = evaluated
    result = report(evaluation, settings, ran_on)
    print_scores(result, submission)
    warn_of_missing(evaluation, predictions)
    if json is not None:
        write_json(json, result)
    if csv is not None:
        write_csv(csv, result)


_Evaluated = tuple["Evaluation", dict[str, Any], "dict[str, str] | None"]
"""An evaluation, the settings of its masks, and the back end that made them (None: unknown)."""


def _run_bundle(request: EvaluationRequest, submission: Path | None) -> _Evaluated:
    from rvos_deploy.console.output import frame_progress
    from rvos_deploy.evaluation.bundle_masks import bundle_settings, evaluate_bundle
    from rvos_deploy.evaluation.evaluate import ScoringOptions

    request.settings("online")  # refuses wrong settings before the bundle is loaded
    overlaps = request.rules.overlaps(request.overlaps)
    split = request.rules.read(request.data)  # first, because loading the bundle may take long
    with request.load() as segmenter, frame_progress() as progress:
        settings = request.settings(segmenter.bundle.network.default_mode)
        for note in segmenter.bundle.network.notes(settings):
            typer.echo(f"note: {note}", err=True)
        evaluation = evaluate_bundle(
            segmenter,
            split,
            request.protocol,
            settings,
            options=ScoringOptions(overlaps=overlaps, jobs=request.jobs, progress=progress),
            submission=submission,
        )
        used = {**bundle_settings(segmenter, settings), "overlaps": overlaps}
        return evaluation, used, segmenter.describe_backend()


def _score_masks(request: EvaluationRequest, submission: Path | None) -> _Evaluated:
    from rvos_deploy.console.output import frame_progress
    from rvos_deploy.evaluation.evaluate import ScoringOptions
    from rvos_deploy.evaluation.evaluate import evaluate as evaluate_folder

    with frame_progress() as progress:
        evaluation = evaluate_folder(
            request.predictions,
            request.data,
            request.protocol,
            options=ScoringOptions(jobs=request.jobs, progress=progress),
            submission=submission,
        )
    settings = {"predictions": str(request.predictions)}
    if request.rules.groups is not None:
        settings["overlaps"] = "keep"  # binary masks hold no logits that could resolve overlaps
    return evaluation, settings, None


def _refuse_scores_without_sweep(sweep_at: str | None) -> None:
    from rvos_deploy.errors import InputError

    if sweep_at is not None:
        raise InputError("--sweep-at names the thresholds of a sweep; add --sweep-threshold")


def _check_sweep(stream: StreamOptions, submission: Path | None) -> None:
    """Refuse options that have no meaning in a sweep."""
    from rvos_deploy.errors import InputError

    reasons = {
        "--mode": "which covers both modes",
        "--threshold": "which tries many; list them with --sweep-at",
    }
    for name, reason in reasons.items():
        if name in stream.given():
            raise InputError(f"{name} has no meaning with --sweep-threshold, {reason}")
    if submission is not None:
        raise InputError(
            "--submission has no meaning with --sweep-threshold, whose masks differ by threshold; "
            "choose one first, then evaluate with --threshold SCORE --submission FILE.zip"
        )


def _refuse_bundle_options(
    request: EvaluationRequest, sweep_threshold: bool, sweep_at: str | None
) -> None:
    """Refuse options of bundles for existing masks."""
    from rvos_deploy.errors import InputError

    others = {
        "--overlaps": request.overlaps is not None,
        "--sweep-threshold": sweep_threshold,
        "--sweep-at": sweep_at is not None,
    }
    given = [*request.stream.given(), *(name for name, present in others.items() if present)]
    if given:
        raise InputError(
            f"{request.predictions} is not a bundle (it has no manifest.json), and {given[0]} has "
            f"no meaning for existing masks; leave {given[0]} out"
        )
