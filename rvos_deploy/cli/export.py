"""``rvos-deploy export``: PyTorch network in, proven bundle out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import JsonOption, SizeOption, check_outputs, parse_size


class Stored(str, Enum):
    """Types that weights are stored in."""

    fp32 = "fp32"
    fp16 = "fp16"


class WhichCheckpoint(str, Enum):
    """Checkpoints of a training run by name."""

    best = "best"
    latest = "latest"


class Computing(str, Enum):
    """Types that graphs compute in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE|PRESET",
            help="Folder of a training run, which has everything; or a recipe (.toml) or a preset "
            "(large, large-paper, base, tiny), with --checkpoint.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the bundle goes.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Trained weights, .safetensors, of the recipe or preset.",
        ),
    ] = None,
    which: Annotated[
        WhichCheckpoint | None,
        typer.Option(
            "--which", help="Checkpoint of the run. Default: the best, or the latest if none is."
        ),
    ] = None,
    clip_weights: Annotated[
        str | None,
        typer.Option(
            "--clip-weights",
            metavar="TAG|FILE",
            help="open_clip tag or file for the frozen CLIP part. A run has its own.",
        ),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="No weights at all: to try the pipeline.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of random weights.")] = 0,
    store: Annotated[
        Stored,
        typer.Option(
            "--store", help="Dtype of weights in the files; fp16 halves them, computes in fp32."
        ),
    ] = Stored.fp32,
    precision: Annotated[
        Computing, typer.Option("--precision", help="Type that the graphs compute in.")
    ] = Computing.fp32,
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
            help="Fix the graphs' sizes, for runtimes that want constants: height, width, "
            "expressions and tokens, for example 256x448,4,16; with M also the frames remembered, "
            "which stay dynamic otherwise. Videos are letterboxed, the rest is padded.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", metavar="SCORE", help="Score a query must pass. Default: the preset's."
        ),
    ] = None,
    minimum: Annotated[
        float,
        typer.Option(
            "--minimum-j-and-f",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="What the masks of a small clip must keep of PyTorch's; the bundle records it. "
            "Rounding can move an unsure query by more than the default allows.",
        ),
    ] = 0.999,
    slot_excess: Annotated[
        float | None,
        typer.Option(
            "--maximum-slot-excess",
            metavar="COST",
            min=0.0,
            help="What PyTorch's slots may cost more than the best ones of the file on that clip; "
            "the bundle records it. Default: what rounding explains, 0.16 in fp16; 0.4 and more is "
            "another object.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle that is there.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Export a network to ONNX, check it against PyTorch, and write the bundle if all holds."""
    from dataclasses import replace

    from rvos_deploy.cli.extras import needs_extra
    from rvos_deploy.cli.parity_table import notes
    from rvos_deploy.console.output import mebibytes, step_progress
    from rvos_deploy.environment import machine, versions
    from rvos_deploy.errors import InputError
    from rvos_deploy.json_file import write_json

    check_outputs([json], [checkpoint] if checkpoint else [])
    box = parse_size(size)
    with needs_extra("export", "cpu,export"):
        from rvos_deploy.export import bundle_export
        from rvos_deploy.export.graph_form import GraphForm, read_static_shapes
        from rvos_deploy.export.source import find_source
        from rvos_deploy.export.weights import Weights
    static = None if static_shapes is None else read_static_shapes(static_shapes)
    form = GraphForm(opset, static, box)
    found = find_source(source, checkpoint, clip_weights, which.value if which else None)
    if found.run is not None and random_weights:
        raise InputError(f"{source} is a training run and has weights; leave --random-weights out")
    chosen = found.config if threshold is None else replace(found.config, threshold=threshold)
    weights = Weights(
        found.checkpoint,
        found.clip,
        random_weights,
        seed,
        store.value,
        precision.value,
        minimum,
        slot_excess,
        found.run,
    )
    if found.run is not None:
        typer.echo(f"weights: {found.checkpoint}, {found.run.checkpoint}, step {found.run.step}")
    with step_progress() as progress:
        report = bundle_export.export_bundle(
            chosen, out, weights, form=form, overwrite=overwrite, progress=progress
        )
    worst = max(v.comparison.max_abs for v in report.results if hasattr(v, "comparison"))
    masks = next(v for v in report.results if hasattr(v, "j_and_f"))
    stored = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    typer.echo(
        f"{out}: {mebibytes(stored)}, 5 graphs; {len(report.results)} parity checks passed "
        f"(largest difference {worst:.1e}, J&F of the masks {masks.j_and_f:.4f})"
    )
    for line in notes([result.as_dict() for result in report.results]):
        typer.echo(line)
    if (unproved := bundle_export.NOT_PROVED.get(precision.value)) is not None:
        typer.echo(f"not proved: {unproved}")
    typer.echo(f"{report.seconds:.1f} s, peak memory {mebibytes(report.peak_memory_bytes)}")
    if json is not None:
        write_json(
            json,
            {
                "schema": "rvos-deploy/export/1",
                "command": "export",
                "bundle": str(out),
                "bytes": stored,
                "seconds": report.seconds,
                "peak_memory_bytes": report.peak_memory_bytes,
                "checks": [result.as_dict() for result in report.results],
                "versions": versions("torch", "onnx", "onnxruntime"),
                "machine": machine(),
            },
        )
