"""``rvos-deploy export``: a PyTorch network in, a bundle with parity checks out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvos_deploy.console.options import JsonOption, OverwriteOption, SizeOption, parse_size
from rvos_deploy.console.output_files import check_outputs, write_record
from rvos_deploy.export.source import Pointer, Store
from rvos_deploy.graph_io.graph_spec import Precision

if TYPE_CHECKING:
    from rvos_deploy.export.bundle_export import ExportReport
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
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Trained weights of the recipe or preset (.safetensors).",
        ),
    ] = None,
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
    from rvos_deploy.console.extras import needs_extra
    from rvos_deploy.console.output import step_progress
    from rvos_deploy.errors import InputError

    check_outputs([json], [checkpoint] if checkpoint else [])
    box = parse_size(size)
    with needs_extra("export", "cpu,export"):
        from rvos_deploy.export.bundle_export import NOT_PROVED
        from rvos_deploy.export.graph_form import GraphForm, read_static_shapes
        from rvos_deploy.export.pan2024 import export_bundle
        from rvos_deploy.export.source import find_source
        from rvos_deploy.export.weights import Weights
    static = None if static_shapes is None else read_static_shapes(static_shapes)
    form = GraphForm(opset, static, box)
    found = find_source(source, checkpoint, clip_weights, which)
    if found.run is not None and random_weights:
        raise InputError(f"{source} is a training run and has weights; leave --random-weights out")
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
    )
    if found.run is not None:
        typer.echo(f"weights: {found.checkpoint}, {found.run.checkpoint}, step {found.run.step}")
    config = _with_threshold(found, threshold)
    with step_progress() as progress:
        report = export_bundle(
            config, out, weights, form=form, overwrite=overwrite, progress=progress
        )
    stored = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    _print(report, out, stored, NOT_PROVED.get(precision))
    _write(json, report, out, stored)


def _with_threshold(source: ExportSource, threshold: float | None) -> ModelConfig:
    from dataclasses import replace

    config: ModelConfig = source.config
    return config if threshold is None else replace(config, threshold=threshold)


def _print(report: ExportReport, bundle: Path, stored: int, not_proved: str | None) -> None:
    from rvos_deploy.cli.parity_table import notes
    from rvos_deploy.console.output import mebibytes

    worst = max(v.comparison.max_abs for v in report.results if hasattr(v, "comparison"))
    masks = next(v for v in report.results if hasattr(v, "j_and_f"))
    typer.echo(
        f"{bundle}: {mebibytes(stored)}, 5 graphs; {len(report.results)} parity checks passed "
        f"(largest difference {worst:.1e}, J&F of the masks {masks.j_and_f:.4f})"
    )
    for line in notes([result.as_dict() for result in report.results]):
        typer.echo(line)
    if not_proved is not None:
        typer.echo(f"not proved: {not_proved}")
    typer.echo(f"{report.seconds:.1f} s, peak memory {mebibytes(report.peak_memory_bytes)}")


def _write(json: Path | None, report: ExportReport, bundle: Path, stored: int) -> None:
    from rvos_deploy.environment import versions

    content = {
        "bundle": str(bundle),
        "bytes": stored,
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
        "checks": [result.as_dict() for result in report.results],
    }
    write_record(json, "export", content, versions("torch", "onnx", "onnxruntime"))
