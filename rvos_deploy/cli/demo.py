"""``rvos-deploy demo``: a network on a video that it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.console.options import (
    PACKAGED,
    BackendName,
    BackendOption,
    BundleOption,
    Device,
    DeviceOption,
    ThreadsOption,
)


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for all that is written.")
    ] = Path("demo"),
    bundle: BundleOption = PACKAGED,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Another video.")
    ] = None,
    backend: BackendOption = BackendName.auto,
    device: DeviceOption = Device.auto,
    threads: ThreadsOption = None,
) -> None:
    """Segment a rendered video, and score the masks against ground truth."""
    from rich.table import Table

    from rvos_deploy.console.output import frame_progress, result_console
    from rvos_deploy.demo import SEED, run_demo
    from rvos_deploy.redaction import redact_command
    from rvos_deploy.runtime.segmenter import load

    with (
        load(bundle, backend=backend.value, device=device.value, threads=threads) as segmenter,
        frame_progress() as progress,
    ):
        report = run_demo(
            segmenter,
            out,
            seed=SEED if seed is None else seed,
            command=redact_command(),
            progress=progress,
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("expression", overflow="fold")
    table.add_column("kind")
    for name in ("J", "F", "J&F"):
        table.add_column(name, justify="right")
    for row in report.scores:
        table.add_row(row.text, row.kind, f"{row.j:.3f}", f"{row.f:.3f}", f"{row.j_and_f:.3f}")
    result_console().print(table)
    typer.echo(
        f"\n{report.scores[0].frames} frames at {report.frames_per_second:.1f} fps; in {out}: "
        "picture.png, overlay.mp4, masks/, result.json, metrics.json, video.mp4"
    )
