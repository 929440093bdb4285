"""Prepare an ``export`` of the network of Pan, Fang and Lu (2024)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rvos_deploy.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rvos_deploy.cli.export_request import ExportRequest
    from rvos_deploy.export.bundle_export import ExportReport
    from rvos_deploy.progress import StepProgress


def prepare(request: ExportRequest) -> Callable[[StepProgress], ExportReport]:
    """Check the options, fetch the checkpoint if it is a URL, and return the export.

    Raises InputError: the options do not fit the source.
    """
    from rvos_deploy.export.bundle_export import BundleOptions, check_target
    from rvos_deploy.export.pan2024 import export_bundle
    from rvos_deploy.export.source import find_source
    from rvos_deploy.export.weights import Weights

    form, files, source = request.form(), request.files, request.source
    checkpoint = Path(files.checkpoint) if files.checkpoint else None
    found = find_source(source, checkpoint, request.clip_weights, request.which)
    if files.tokenizer is not None:
        raise InputError(f"'{source}' has its own vocabulary; leave --tokenizer out")
    if request.short_side is not None:
        raise InputError(
            f"'{source}' resizes frames into a box; give --size HxW instead of --short-side"
        )
    if found.run is not None and request.random:
        raise InputError(f"{source} is a training run and has weights; leave --random-weights out")
    check_target(request.out, BundleOptions(overwrite=request.overwrite))  # before any fetching
    if not request.random and (file := files.fetch_checkpoint()) is not None:
        found = replace(found, checkpoint=file.path, url=file.url)
    weights = Weights(
        checkpoint=found.checkpoint,
        clip=found.clip,
        random=request.random,
        seed=request.seed,
        store=request.store,
        precision=request.precision,
        minimum_j_and_f=request.minimum_j_and_f,
        maximum_slot_excess=request.maximum_slot_excess,
        run=found.run,
        url=found.url,
    )
    if found.run is not None:
        typer.echo(f"weights: {found.checkpoint}, {found.run.checkpoint}, step {found.run.step}")
    config = found.config
    if request.threshold is not None:
        config = replace(config, threshold=request.threshold)
    return lambda progress: export_bundle(
        config,
        request.out,
        weights,
        form=form,
        calibration=request.calibration,
        overwrite=request.overwrite,
        progress=progress,
    )
