"""Segment a video that the network has never seen: ``rvos-deploy demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    PACKAGED,
    BackendOption,
    BundleOption,
    DeviceOption,
    OutFolderOption,
    PrecisionHintOption,
    ThreadsOption,
)


def demo(
    out: OutFolderOption = Path("demo"),
    bundle: BundleOption = PACKAGED,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Seed of the video.")
    ] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    precision_hint: PrecisionHintOption = None,
) -> None:
    """Segment a rendered video, and score the masks against ground truth."""
    from rvos_deploy.console.output import (
        choice_lines,
        frame_progress,
        note_precision_hint,
        number_table,
        result_console,
    )
    from rvos_deploy.demo import SEED, run_demo
    from rvos_deploy.redaction import redact_command
    from rvos_deploy.runtime.segmenter import load

    note_precision_hint(precision_hint, bundle)
    with (
        load(
            bundle,
            backend=backend,
            device=device,
            threads=threads,
            precision_hint=precision_hint,
        ) as segmenter,
        frame_progress() as progress,
    ):
        report = run_demo(
            segmenter,
            out,
            seed=SEED if seed is None else seed,
            command=redact_command(),
            progress=progress,
        )
    table = number_table(("expression", "kind"), ("J", "F", "J&F"))
    for row in report.scores:
        table.add_row(row.text, row.kind, f"{row.j:.3f}", f"{row.f:.3f}", f"{row.j_and_f:.3f}")
    result_console().print(table)
    typer.echo(
        f"\n{report.scores[0].frames} frames at {report.frames_per_second:.1f} fps; in {out}: "
        "picture.png, overlay.mp4, masks/, result.json, metrics.json, video.mp4"
    )
    for line in choice_lines(segmenter.describe_backend()):
        typer.echo(line)
