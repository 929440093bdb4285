"""Measure which back end ``auto`` should be: ``rvos-deploy choose-backend``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from rvos_deploy.console.options import (
    BundleArgument,
    JsonOption,
    ShortSideOption,
    SizeOption,
    ThreadsOption,
    parse_size,
)
from rvos_deploy.console.output_files import check_outputs, write_record

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.runtime.backends.trial_record import Trial


def choose_backend(
    bundle: BundleArgument,
    size: SizeOption = None,
    short_side: ShortSideOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Measure the installed back ends on this CPU, and record the one that auto is to use.

    A back end must pass every check of 'verify', and its masks must equal
    those of the first one. The record is for this machine, bundle, size,
    number of threads and versions, and lies in the cache folder
    (RVOS_DEPLOY_CACHE). Nothing else changes what auto is.
    """
    from rvos_deploy.benchmarks.backend_trial import hold_trial
    from rvos_deploy.bundle.folder import bundle_files, find_bundle, open_bundle
    from rvos_deploy.console.output import result_console, step_progress
    from rvos_deploy.environment import versions
    from rvos_deploy.runtime.backends import choice
    from rvos_deploy.runtime.backends.trial_record import trial_file, trial_key, write_trial
    from rvos_deploy.stream_settings import StreamSettings

    settings = StreamSettings(size=parse_size(size), short_side=short_side)
    check_outputs([json], bundle_files(find_bundle(bundle)))
    opened = open_bundle(bundle)
    candidates = choice.candidates_of(opened)
    if len(candidates) < 2:
        chosen = choice.choose("auto", opened, settings)
        typer.echo(f"{bundle}: nothing to measure: {chosen.name}, {chosen.reason}")
        return
    check_outputs([trial_file(trial_key(opened, settings, threads))])
    with step_progress() as progress:
        trial = hold_trial(opened, candidates, settings, threads=threads, progress=progress)
    file = write_trial(trial)
    result_console().print(_table(trial))
    chosen = choice.choose("auto", opened, settings, threads=threads)
    typer.echo(f"{bundle}: auto is {chosen.name} at {trial.key['size']}, recorded in {file}")
    content = {
        "bundle": str(bundle),
        "chosen": chosen.name,
        "reason": chosen.reason,
        "size": trial.key["size"],
        "threads": int(trial.key["threads"]),
        "results": [
            {"name": r.backend, "milliseconds": r.milliseconds, "failure": r.failure}
            for r in trial.results
        ],
    }
    write_record(json, "choose-backend", content, versions("onnxruntime", "openvino"))


def _table(trial: Trial) -> Table:
    from rvos_deploy.console.output import number_table

    table = number_table(("back end",), ("ms a frame",))
    table.add_column("")
    for result in trial.results:
        time = "" if result.milliseconds is None else f"{result.milliseconds:.1f}"
        table.add_row(result.backend, time, result.failure or "equal to the reference")
    return table
