"""Measure latency by stage, throughput and memory: ``rvos-deploy benchmark``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rvos_deploy.console.options import (
    PACKAGED,
    BackendOption,
    BundleOption,
    DeviceOption,
    JsonOption,
    PrecisionHintOption,
    ShortSideOption,
    SizeOption,
    ThreadsOption,
    parse_size,
)
from rvos_deploy.console.output_files import check_outputs

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.bundle.folder import Bundle
    from rvos_deploy.runtime.backends.base import Backend


def benchmark(
    bundle: BundleOption = PACKAGED,
    video: Annotated[
        str | None,
        typer.Option(
            "--video",
            metavar="VIDEO",
            help="Video to run on. Default: a rendered clip of 854x480.",
        ),
    ] = None,
    expressions: Annotated[
        int,
        typer.Option("--expressions", metavar="N", min=1, help="Expressions to segment at once."),
    ] = 1,
    frames: Annotated[
        int,
        typer.Option("--frames", metavar="N", min=1, help="Frames to measure, after 3 of warm-up."),
    ] = 30,
    size: SizeOption = None,
    short_side: ShortSideOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
    compare: Annotated[
        Literal["pytorch"] | None,
        typer.Option(
            "--compare", help="Also measure this library, by turns, on the same frames and threads."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="For --compare: the weights that the bundle was exported from. Default: the "
            "bundle's own. A bundle of an older version needs it.",
        ),
    ] = None,
    clip_weights: Annotated[
        str | None,
        typer.Option(
            "--clip-weights",
            metavar="FILE",
            help="For --compare: the CLIP part of a --checkpoint that has none.",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Measure latency by stage, throughput with overlapped stages, and peak memory."""
    from rvos_deploy.benchmarks.latency import LatencyOptions, benchmark_latency
    from rvos_deploy.bundle.folder import bundle_files, find_bundle
    from rvos_deploy.console.output import note_precision_hint, step_progress
    from rvos_deploy.environment import usable_cores
    from rvos_deploy.json_file import write_json
    from rvos_deploy.overlap import source_files
    from rvos_deploy.runtime.segmenter import load
    from rvos_deploy.stream_settings import StreamSettings

    inputs = [*bundle_files(find_bundle(bundle)), *(source_files(video) if video else ())]
    _require_comparison(compare, checkpoint, clip_weights)
    given = [Path(file) for file in (checkpoint, clip_weights) if file]
    check_outputs([json], inputs + given)
    note_precision_hint(precision_hint, bundle)
    settings = StreamSettings(size=parse_size(size), short_side=short_side)
    cores = threads or usable_cores()
    with (
        load(
            bundle,
            backend=backend,
            device=device,
            threads=threads,
            settings=settings,
            precision_hint=precision_hint,
        ) as segmenter,
        step_progress() as progress,
    ):
        reference = None
        if compare:
            reference = _pytorch(segmenter.bundle, cores, checkpoint, clip_weights)
        options = LatencyOptions(video, expressions, frames, settings)
        result = benchmark_latency(segmenter, options, reference=reference, progress=progress)
    result["threads"] = cores
    _print(result)
    if json is not None:
        write_json(json, result)


def _print(result: dict[str, Any]) -> None:
    from rvos_deploy.console.output import choice_lines, mebibytes, result_console

    backend = result["versions"]["backend"]
    for line in (_title(result), *choice_lines(backend)):
        typer.echo(line)
    if backend["device"] == "cpu":
        typer.echo(attention_line(backend))
    result_console().print(_stage_table(result))
    overlapped = result["overlapped"]["frames_per_second"]
    typer.echo(
        f"whole job, stages overlapped, files written: {overlapped:.2f} fps; "
        f"peak memory {mebibytes(result['memory']['peak_bytes'])}"
    )
    if (found := result.get("comparison")) is not None:
        ours, theirs = (found[side]["milliseconds"]["p50"] for side in ("ours", "theirs"))
        typer.echo(
            f"{found['ratio']:.2f} times the speed of eager PyTorch "
            f"{found['reference']['version']} on the same frames and threads "
            f"({ours:.1f} against {theirs:.1f} ms, masks agree: J&F {found['j_and_f']:.4f})"
        )


def _require_comparison(
    compare: str | None, checkpoint: Path | None, clip_weights: str | None
) -> None:
    """Refuse options that would have no effect."""
    from rvos_deploy.errors import InputError

    if clip_weights is not None and checkpoint is None:
        raise InputError("--clip-weights belongs to --checkpoint FILE; pass both, or neither")
    if checkpoint is not None and compare is None:
        raise InputError("--checkpoint belongs to --compare pytorch; pass both, or neither")


def _pytorch(
    bundle: Bundle, threads: int, checkpoint: Path | None, clip_weights: str | None
) -> Backend:
    from rvos_deploy.console.extras import let_threads_sleep, needs_extra

    let_threads_sleep()  # PyTorch must be measured at its best
    with needs_extra("--compare pytorch", "cpu,export"):
        from rvos_deploy.benchmarks.torch_backend import TorchBackend
    backend: Backend = TorchBackend(bundle, threads, checkpoint, clip_weights)
    return backend


def _title(result: dict[str, Any]) -> str:
    from rvos_deploy.console.output import counted, in_precision

    height, width = result["input_size"]
    backend = result["versions"]["backend"]
    return (
        f"{result['model']} in {height}x{width}, {counted(result['expressions'], 'expression')}, "
        f"{backend['name']} on {backend['device']}{in_precision(backend)}, "
        f"{counted(result['threads'], 'thread')}; milliseconds"
    )


def attention_line(backend: Mapping[str, str]) -> str:
    """Say how deformable attention runs on this CPU, and how it would be faster.

    ``backend``: from ``Backend.describe``.
    """
    from rvos_deploy.cpu_ops import ms_deform_attn as kernel

    ran = backend.get("deformable_attention", "function body")
    if ran != "function body":
        return f"deformable attention: CPU kernel, {ran}"
    if kernel.available():
        return "deformable attention: function body; --backend openvino has a faster kernel"
    return f"deformable attention: function body; {kernel.NOT_BUILT}"


def _stage_table(result: dict[str, Any]) -> Table:
    from rvos_deploy.console.output import number_table

    table = number_table(("stage",), ("p50", "p90", "p99", "count"))
    rows = [*result["stages"].items(), ("end to end, without decoding", result["end_to_end"])]
    for stage, summary in rows:
        times = summary["milliseconds"]
        table.add_row(
            stage, *(f"{times[p]:.2f}" for p in ("p50", "p90", "p99")), str(summary["count"])
        )
    return table
