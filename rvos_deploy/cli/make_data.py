"""``rvos-deploy make-data``: videos with known answers, rendered."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.console.options import EmojiOption, check_outputs, read_sides

VIDEOS = {"train": 1000, "valid": 100}
"""Videos of a split when nobody says how many."""


class DataKind(str, Enum):
    """What to make."""

    sample = "sample"
    sprites = "sprites"


class SplitName(str, Enum):
    """Splits of Moving Sprites: they share no seed, background, or pair of colour and shape."""

    train = "train"
    valid = "valid"


def make_data(
    kind: Annotated[
        DataKind,
        typer.Argument(
            metavar="KIND",
            help="sample: one Moving Sprites video as an MP4; sprites: a split of it, in MeViS's "
            "layout.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="PATH", help="File of the sample, or folder of the split."
        ),
    ],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which videos.")] = 0,
    split: Annotated[
        SplitName | None,
        typer.Option("--split", help="sprites: written to PATH/SPLIT. Required."),
    ] = None,
    videos: Annotated[
        int | None,
        typer.Option(
            "--videos",
            metavar="N",
            min=1,
            help=f"sprites: how many. Default: {VIDEOS['valid']} valid, {VIDEOS['train']} train.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="sprites: of the frames. Default: 128x224."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", metavar="T", help="sprites: of each video. Default: 24."),
    ] = None,
    emoji: EmojiOption = False,
    photos: Annotated[
        Path | None,
        typer.Option("--photos", metavar="DIR", help="sprites: photographs as backgrounds too."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="Processes. Default: all cores."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="sprites: replace a split that is there.")
    ] = False,
) -> None:
    """Render videos of Moving Sprites, with expressions that fit them."""
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
    if kind is DataKind.sample:
        if given := [name for name, value in options.items() if value is not None]:
            raise InputError(f"{given[0]} has no meaning for the sample; leave it out")
        check_outputs([out])
        _make_sample(out, seed, emoji)
        return
    if split is None:
        raise InputError("which split of sprites is missing; add --split train or --split valid")
    world = {"frames": frames, "emoji": emoji, "photos": None if photos is None else str(photos)}
    world["height"], world["width"] = (None, None) if size is None else read_sides(size, "128x224")
    _make_sprites(
        out / split.value,
        split,
        seed,
        videos or VIDEOS[split.value],
        {name: value for name, value in world.items() if value is not None},
        jobs,
        overwrite,
    )


def _make_sample(out: Path, seed: int, emoji: bool) -> None:
    from rvos_deploy.datasets.moving_sprites import sample_video

    sample = sample_video(out, seed=seed, emoji=emoji)
    typer.echo(f"{out}: {len(sample.masks)} frames, {len(sample.video.objects)} objects")
    for expression in sample.video.expressions:
        typer.echo(f'  "{expression.text}" ({expression.kind})')


def _make_sprites(
    folder: Path,
    split: SplitName,
    seed: int,
    videos: int,
    world: dict[str, Any],
    jobs: int | None,
    overwrite: bool,
) -> None:
    from rvos_deploy.console.output import counted, frame_progress
    from rvos_deploy.datasets.moving_sprites import WorldConfig, write_mevis
    from rvos_deploy.environment import usable_cores

    config = WorldConfig(**world)
    with frame_progress() as progress:
        write_mevis(
            folder,
            seed=seed,
            split=split.value,
            videos=videos,
            config=config,
            jobs=min(jobs or usable_cores(), videos),
            overwrite=overwrite,
            progress=lambda done, total: progress(
                "videos", done * config.frames, total * config.frames
            ),
        )
    typer.echo(
        f"{folder}: {counted(videos, 'video')} of {config.frames} frames, "
        f"{config.height}x{config.width}, {'with' if config.emoji else 'without'} emoji, "
        f"seed {seed}"
    )
