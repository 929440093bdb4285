"""Prepare an ``export`` of OnlineRefer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rvos_deploy.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rvos_deploy.cli.export_request import ExportRequest
    from rvos_deploy.export.bundle_export import ExportReport
    from rvos_deploy.progress import StepProgress


def prepare(request: ExportRequest) -> Callable[[StepProgress], ExportReport]:
    """Check the options, fetch missing files, and return the export.

    Raises:
        InputError: an option does not fit this network.
        DownloadError: a published file cannot be fetched.
    """
    from rvos_deploy.export.bundle_export import BundleOptions, check_target
    from rvos_deploy.export.online_refer import OnlineReferWeights, export_bundle
    from rvos_deploy.networks.online_refer.config import preset

    _refuse_foreign(request)
    config, form = preset(request.source), request.form()
    if request.short_side is not None:
        config = config.with_short_side(request.short_side)
    if request.threshold is not None:
        config = replace(config, threshold=request.threshold)
    check_target(request.out, BundleOptions(overwrite=request.overwrite))  # before any fetching
    checkpoint, tokenizer = request.files.resolve(request.source, random=request.random)
    weights = OnlineReferWeights(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        seed=request.seed,
        store=request.store,
        precision=request.precision,
        minimum_j_and_f=request.minimum_j_and_f,
        maximum_score_excess=request.maximum_slot_excess,
    )
    return lambda progress: export_bundle(
        config,
        request.out,
        weights,
        form=form,
        calibration=request.calibration,
        overwrite=request.overwrite,
        progress=progress,
    )


def _refuse_foreign(request: ExportRequest) -> None:
    foreign = {
        "--which": request.which is not None,
        "--clip-weights": request.clip_weights is not None,
    }
    for name, given in foreign.items():
        if given:
            raise InputError(f"'{request.source}' does not use {name}; leave {name} out")
    if request.size is not None:
        raise InputError(
            f"'{request.source}' scales the short side of frames; give --short-side instead of "
            "--size"
        )
    if request.random and request.files.checkpoint is not None:
        raise InputError("--random-weights and --checkpoint exclude each other; leave one out")
