"""``rvos-deploy make-data``: videos with known answers, rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def make_data(
    kind: Annotated[str, typer.Argument(help="sample: one Moving Sprites video as an MP4.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where it goes.")],
    seed: Annotated[int, typer.Option("--seed", help="Which video.")] = 0,
) -> None:
    """Render a Moving Sprites video and print expressions that fit it."""
    from rvos_deploy.errors import InputError
    from rvos_deploy.sprites import sample_video

    if kind != "sample":
        raise InputError(f"unknown kind of data '{kind}'; known: sample")
    sample = sample_video(out, seed=seed)
    typer.echo(f"{out}: {len(sample.frames)} frames")
    for expression in sample.video.expressions:
        typer.echo(f'  "{expression.text}" ({expression.kind})')
