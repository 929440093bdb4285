"""Render videos with ground truth: ``rvos-deploy make-data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rvos_deploy.console.options import EmojiOption, JobsOption, OverwriteOption, read_sides
from rvos_deploy.console.output_files import check_outputs

if TYPE_CHECKING:
    from rvos_deploy.datasets.moving_sprites import WorldConfig

VIDEOS = {"train": 1000, "valid": 100}
"""Default number of videos, by split."""


def make_data(
    kind: Annotated[
        Literal["sample", "sprites"],
        typer.Argument(
            metavar="KIND",
            help="sample: one video of Moving Sprites, as an MP4 file; sprites: a whole split, in "
            "the layout of MeViS.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PATH", help="File of the sample, or folder of the split."
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the videos.")] = 0,
    split: Annotated[
        Literal["train", "valid"] | None,
        typer.Option("--split", help="sprites: split to render into PATH/SPLIT. Required."),
    ] = None,
    videos: Annotated[
        int | None,
        typer.Option(
            "--videos",
            metavar="N",
            min=1,
            help="sprites: number of videos. Default: "
            f"{VIDEOS['valid']} valid, {VIDEOS['train']} train.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="sprites: size of a frame. Default: 128x224."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", metavar="T", help="sprites: frames per video. Default: 24."),
    ] = None,
    emoji: EmojiOption = False,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos", metavar="DIR", help="sprites: also use these photographs as backgrounds."
        ),
    ] = None,
    jobs: JobsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Render videos of Moving Sprites, with matching expressions and exact masks."""
    from rvos_deploy.errors import InputError

    options = {
        "--split": split,
        "--videos": videos,
        "--size": size,
        "--frames": frames,
        "--photos": photos,
        "--jobs": jobs,
        "--overwrite": overwrite or None,
    }
    if kind == "sample":
        if given := [name for name, value in options.items() if value is not None]:
            raise InputError(f"{given[0]} has no meaning for the sample; leave {given[0]} out")
        check_outputs([out])
        _make_sample(out, seed, emoji)
        return
    if split is None:
        raise InputError("sprites need a split; add --split train or --split valid")
    from rvos_deploy.console.output import count_progress, counted
    from rvos_deploy.datasets.moving_sprites import SplitSpec, write_mevis
    from rvos_deploy.environment import usable_cores

    folder, count = out / split, videos or VIDEOS[split]
    config = _world(size, frames, emoji, photos)
    with count_progress("videos", "videos/s") as progress:
        write_mevis(
            folder,
            SplitSpec(seed=seed, split=split, videos=count, config=config),
            jobs=min(jobs or usable_cores(), count),
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(
        f"{folder}: {counted(count, 'video')} of {config.frames} frames, "
        f"{config.height}x{config.width}, {'with' if config.emoji else 'without'} emoji, "
        f"seed {seed}"
    )


def _world(size: str | None, frames: int | None, emoji: bool, photos: Path | None) -> WorldConfig:
    """Return the world's settings; options that were not given keep the world's defaults."""
    from rvos_deploy.datasets.moving_sprites import WorldConfig

    given: dict[str, Any] = {"emoji": emoji}
    if size is not None:
        given["height"], given["width"] = read_sides(size, "128x224")
    if frames is not None:
        given["frames"] = frames
    if photos is not None:
        given["photos"] = str(photos)
    return WorldConfig(**given)


def _make_sample(out: Path, seed: int, emoji: bool) -> None:
    from rvos_deploy.datasets.moving_sprites import sample_video

    sample = sample_video(out, seed=seed, emoji=emoji)
    typer.echo(f"{out}: {len(sample.masks)} frames, {len(sample.video.objects)} objects")
    for expression in sample.video.expressions:
        typer.echo(f'  "{expression.text}" ({expression.kind})')
