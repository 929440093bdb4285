"""Export a PyTorch network to a checked bundle: ``rvos-deploy export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    JsonOption,
    OverwriteOption,
    ShortSideOption,
    SizeOption,
    parse_size,
)
from rvos_deploy.console.output_files import check_outputs
from rvos_deploy.export.source import Pointer, Store
from rvos_deploy.graph_io.graph_spec import Precision


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE|PRESET",
            help="Folder of a training run, which holds all that is needed; a recipe (.toml) or "
            "preset (large, large-paper, base, tiny), together with --checkpoint; or "
            "onlinerefer-r50, whose published weights are fetched.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the bundle.")],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE|URL",
            help="Trained weights of the recipe or preset (.safetensors), or a published "
            "checkpoint (OnlineRefer's .pth). Default for onlinerefer-r50: the published file.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR|FILE|URL",
            help="Vocabulary of a preset with published weights: tokenizer.json, or vocab.json "
            "beside merges.txt. Default: the published vocabulary.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Folder for fetched files. Default: $RVOS_DEPLOY_CACHE, or a folder in your "
            "cache folder.",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Fetch nothing, not even CLIP weights; use files that were fetched before.",
        ),
    ] = False,
    which: Annotated[
        Pointer | None,
        typer.Option(
            "--which",
            help="Checkpoint of the run. Default: best, or latest if the run was never validated.",
        ),
    ] = None,
    clip_weights: Annotated[
        str | None,
        typer.Option(
            "--clip-weights",
            metavar="TAG|FILE",
            help="Weights of the frozen CLIP part: open_clip tag or file. A run names its own.",
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
            help="Number format of the stored weights. fp16 halves the files; the graphs still "
            "compute in --precision.",
        ),
    ] = "fp32",
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            metavar="FORMAT",
            help="Number format that the graphs compute in: fp32, fp16, bf16; or int8 for the "
            "products of the backbone, on CPUs, which needs --calibration.",
        ),
    ] = "fp32",
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="VIDEO|DATASET",
            help="Frames for int8, like those that the network will see: a video file, a folder "
            "of images, or the folder of a data set's split. Half of the frames set the range of "
            "every layer; the others measure the error. Layers that err most stay in float32.",
        ),
    ] = None,
    calibration_frames: Annotated[
        int | None,
        typer.Option(
            "--calibration-frames",
            metavar="N",
            help="Number of frames for int8, spread evenly. Default: 32.",
        ),
    ] = None,
    int8_error: Annotated[
        float | None,
        typer.Option(
            "--maximum-int8-error",
            metavar="SHARE",
            help="Greatest rms error of the backbone's outputs in int8, relative to float32, on "
            "the frames that measure it. More allows more int8 layers. Default: 0.015.",
        ),
    ] = None,
    size: SizeOption = None,
    short_side: ShortSideOption = None,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset",
            metavar="N",
            help="ONNX opset of the files: 17 to 25, bf16 from 22, int8 up to 20. Default: 18, "
            "bf16 22.",
        ),
    ] = None,
    static_shapes: Annotated[
        str | None,
        typer.Option(
            "--static-shapes",
            metavar="HxW,E,L[,M]",
            help="Fix the graphs' sizes, for runtimes that need constants: height and width, "
            "expressions and tokens, for example 256x448,4,16. M also fixes the number of "
            "remembered frames, which is dynamic otherwise. Frames are fitted to the size, "
            "and other inputs are padded.",
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
            help="Least J&F of a small clip's masks against PyTorch's masks; the bundle records "
            "it. Rounding can change an uncertain query by more than the default allows.",
        ),
    ] = 0.999,
    slot_excess: Annotated[
        float | None,
        typer.Option(
            "--maximum-slot-excess",
            metavar="COST",
            min=0.0,
            help="Greatest extra cost of PyTorch's slots over the best slots of the exported "
            "graphs on that clip; the bundle records it. Default: the effect of rounding, 0.16 in "
            "fp16. From 0.4 on, a slot follows another object. For OnlineRefer: greatest excess "
            "of the best score over the score of PyTorch's best query.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = None,
) -> None:
    """Export a network to ONNX, check it against PyTorch, and write a bundle if all checks pass."""
    from rvos_deploy.cli.export_output import print_report, write_report
    from rvos_deploy.cli.export_request import ExportRequest, calibration_options
    from rvos_deploy.console.extras import keep_hub_offline, needs_extra
    from rvos_deploy.console.output import step_progress
    from rvos_deploy.export.file_options import FileOptions
    from rvos_deploy.networks.online_refer.config import PRESETS

    files = FileOptions(checkpoint, tokenizer, cache, offline)
    frames = calibration_options(precision, calibration, calibration_frames, int8_error)
    check_outputs([json], files.local() + ([] if frames is None else [Path(frames.source)]))
    request = ExportRequest(
        source,
        out,
        files,
        which,
        clip_weights,
        random_weights,
        seed,
        store,
        precision,
        frames,
        parse_size(size),
        short_side,
        opset,
        static_shapes,
        threshold,
        minimum,
        slot_excess,
        overwrite,
    )
    if offline:
        keep_hub_offline()
    with needs_extra("export", "cpu,export"):
        from rvos_deploy.export.bundle_export import NOT_PROVED

        if source in PRESETS:
            from rvos_deploy.cli.export_online_refer import prepare

            run = prepare(request)
        else:
            from rvos_deploy.cli import export_pan2024

            run = export_pan2024.prepare(request)
    with step_progress() as progress:
        report = run(progress)
    stored = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    print_report(report, out, stored, NOT_PROVED.get(precision))
    write_report(json, report, out, stored)
