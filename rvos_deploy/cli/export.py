"""``rvos-deploy export``: a PyTorch network in, a bundle with parity checks out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvos_deploy.console.options import JsonOption, OverwriteOption, SizeOption, parse_size
from rvos_deploy.console.output_files import check_outputs
from rvos_deploy.export.source import Pointer, Store
from rvos_deploy.graph_io.graph_spec import Precision

if TYPE_CHECKING:
    from rvos_deploy.export.source import ExportSource
    from rvos_deploy.networks.pan2024.config import ModelConfig


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE|PRESET",
            help="Folder of a training run, which holds all that is needed; or a recipe (.toml) or "
            "a preset (large, large-paper, base, tiny), with --checkpoint.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the bundle.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE|URL",
            help="Trained weights of the recipe or preset (.safetensors).",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR|FILE|URL",
            help="Vocabulary of a preset with published weights: tokenizer.json, or vocab.json "
            "with merges.txt beside it. Default: the published one.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Folder of fetched files. Default: $RVOS_DEPLOY_CACHE, or in your cache folder.",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Fetch nothing, CLIP weights included; use what was fetched before.",
        ),
    ] = False,
    which: Annotated[
        Pointer | None,
        typer.Option(
            "--which",
            help="Checkpoint of the run. Default: the best, or the latest where the run was never "
            "validated.",
        ),
    ] = None,
    clip_weights: Annotated[
        str | None,
        typer.Option(
            "--clip-weights",
            metavar="TAG|FILE",
            help="Weights of the frozen CLIP part: an open_clip tag or a file. A run has its own.",
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights, to try the pipeline.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of random weights.")] = 0,
    store: Annotated[
        Store,
        typer.Option(
            "--store",
            help="Number format of the weights in the files. fp16 halves the files; the graphs "
            "still compute in --precision.",
        ),
    ] = "fp32",
    precision: Annotated[
        Precision, typer.Option("--precision", help="Number format that the graphs compute in.")
    ] = "fp32",
    size: SizeOption = None,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset",
            metavar="N",
            help="ONNX opset of the files: 17 to 25, bf16 from 22. Default: 18, bf16 22.",
        ),
    ] = None,
    static_shapes: Annotated[
        str | None,
        typer.Option(
            "--static-shapes",
            metavar="HxW,E,L[,M]",
            help="Fix the graphs' sizes, for runtimes that need constants: height and width, "
            "expressions, tokens, for example 256x448,4,16. M also fixes the frames remembered, "
            "which stay dynamic without it. Videos are letterboxed, the rest is padded.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="SCORE",
            help="Score that a query must pass, 0 to 1. Default: the preset's.",
        ),
    ] = None,
    minimum: Annotated[
        float,
        typer.Option(
            "--minimum-j-and-f",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="J&F that the masks of a small clip must reach against PyTorch's; the bundle "
            "records it. Rounding can move an unsure query by more than the default allows.",
        ),
    ] = 0.999,
    slot_excess: Annotated[
        float | None,
        typer.Option(
            "--maximum-slot-excess",
            metavar="COST",
            min=0.0,
            help="By how much PyTorch's slots may cost more than the best slots of the exported "
            "graphs on that clip; the bundle records it. Default: what rounding explains, 0.16 in "
            "fp16. From 0.4 on, a slot follows another object.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Export a network to ONNX, check it against PyTorch, and write a bundle if all checks pass."""
    from dataclasses import replace

    from rvos_deploy.cli.export_output import print_report, write_report
    from rvos_deploy.cli.published_files import FileOptions
    from rvos_deploy.console.extras import keep_hub_offline, needs_extra
    from rvos_deploy.console.output import step_progress
    from rvos_deploy.errors import InputError

    files = FileOptions(checkpoint, tokenizer, cache, offline)
    check_outputs([json], files.local())
    box = parse_size(size)
    if offline:
        keep_hub_offline()
    with needs_extra("export", "cpu,export"):
        from rvos_deploy.export.bundle_export import NOT_PROVED, BundleOptions, check_target
        from rvos_deploy.export.graph_form import GraphForm, read_static_shapes
        from rvos_deploy.export.pan2024 import export_bundle
        from rvos_deploy.export.source import find_source
        from rvos_deploy.export.weights import Weights
    static = None if static_shapes is None else read_static_shapes(static_shapes)
    form = GraphForm(opset, static, box)
    found = find_source(source, Path(checkpoint) if checkpoint else None, clip_weights, which)
    if tokenizer is not None:
        raise InputError(f"'{source}' comes with its own vocabulary; leave --tokenizer out")
    if found.run is not None and random_weights:
        raise InputError(f"{source} is a training run and has weights; leave --random-weights out")
    check_target(out, BundleOptions(overwrite=overwrite))  # before gigabytes are fetched
    if not random_weights and (file := files.fetch_checkpoint()) is not None:
        found = replace(found, checkpoint=file.path, url=file.url)
    weights = Weights(
        found.checkpoint,
        found.clip,
        random_weights,
        seed,
        store,
        precision,
        minimum,
        slot_excess,
        found.run,
        found.url,
    )
    if found.run is not None:
        typer.echo(f"weights: {found.checkpoint}, {found.run.checkpoint}, step {found.run.step}")
    config = _with_threshold(found, threshold)
    with step_progress() as say:
        report = export_bundle(config, out, weights, form=form, overwrite=overwrite, progress=say)
    stored = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    print_report(report, out, stored, NOT_PROVED.get(precision))
    write_report(json, report, out, stored)


def _with_threshold(source: ExportSource, threshold: float | None) -> ModelConfig:
    from dataclasses import replace

    config: ModelConfig = source.config
    return config if threshold is None else replace(config, threshold=threshold)
