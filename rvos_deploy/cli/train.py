"""``rvos-deploy train``: from a recipe and a data set to weights."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="What to train: a recipe of the package (sprites_tiny, mevis_tiny, mevis_large), "
            "a recipe file (.toml), or a model preset (tiny, base, large, large-paper) for the "
            "data in --data.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="RUN", help="Folder of the run: checkpoints, logs, recipe.json."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Train split of MeViS or Ref-YouTube-VOS, or of data in the same layout. Not used "
            "for Moving Sprites, which are rendered during training.",
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(
            "--valid",
            metavar="DIR",
            help="Split with ground truth on which J&F is measured during training; the best "
            "checkpoint is kept.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one key of the recipe, for example stage.0.steps=200 or model.dim=64. "
            "Repeat it for more keys; docs/recipes.md lists them.",
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="FILE",
            help="Weights to start from: a checkpoint of Mask2Former or FC-CLIP (.safetensors or "
            ".pth), of which the pixel decoder and the transformer decoder are loaded, or "
            "weights.safetensors of an earlier run.",
        ),
    ] = None,
    clip_weights: Annotated[
        str | None,
        typer.Option(
            "--clip-weights",
            metavar="TAG|FILE",
            help="Weights of the frozen CLIP part: a file, or a tag of open_clip. Default: the tag "
            "of the preset; 'tiny' has none.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the latest checkpoint in RUN. Give CONFIG, --set and --data again.",
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            min=1,
            help="Stop after N steps of the whole run. The learning rate follows the recipe.",
        ),
    ] = None,
    cpp_ops: Annotated[
        bool,
        typer.Option(
            "--cpp-ops/--no-cpp-ops",
            help="On a CPU, compute deformable attention in C++, which needs a compiler.",
        ),
    ] = True,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight/--no-preflight",
            help="Check before long stages that motion can be learned, and stop if it cannot. "
            "RUN/preflight.json has the findings.",
        ),
    ] = True,
    gates: Annotated[bool, typer.Option("--gates/--no-gates", hidden=True)] = True,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Two steps of each stage on small clips, CLIP weights random: does it run here?",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, help="Seed of the run. Default: that of the recipe."
        ),
    ] = None,
) -> None:
    """Train a network by a recipe. On several GPUs, start the same command with torchrun."""
    import logging
    from dataclasses import replace

    from rvos_deploy.cli.extras import let_threads_sleep, needs_extra

    _check_inputs(out, config, data, valid, init_from, clip_weights)
    let_threads_sleep()
    with needs_extra("training", "train"):
        from rvos_deploy.training import recipe_file, trainer
        from rvos_deploy.training.checkpoints import hint_on_stop
        from rvos_deploy.training.smoke import smoke_recipe
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    recipe = recipe_file.read_recipe(config, changes or (), data)
    # --no-gates is the former name of --no-preflight.
    recipe = replace(recipe, preflight=recipe.preflight and preflight and gates)
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if smoke:
        recipe = smoke_recipe(recipe)
    with hint_on_stop(out, "--resume"), _alone(out), _training_progress() as progress:
        options = trainer.TrainingOptions(
            data=data,
            valid=valid,
            init_from=init_from,
            clip_weights=clip_weights,
            resume=resume,
            steps=steps,
            cpp_ops=cpp_ops,
        )
        result = trainer.train(recipe, out, options, progress)
    if int(os.environ.get("RANK", "0")):
        return
    typer.echo(
        f"{result.checkpoint}: step {result.steps} of {recipe.steps}, {result.seconds:.1f} s"
    )
    if result.best_checkpoint is not None:
        typer.echo(f"best: {result.best_checkpoint}, J&F {result.best:.4f}")
    bundle = out.with_name(f"{out.name}-bundle")
    typer.echo("export it:")
    typer.echo(shlex.join(["rvos-deploy", "export", str(out), "--out", str(bundle)]))


def _check_inputs(
    run: Path, config: str, data: Path | None, valid: Path | None, *files: Path | str | None
) -> None:
    """Refuse a run folder whose own files are inputs, or that is a data set."""
    from rvos_deploy.errors import InputError
    from rvos_deploy.overlap import refuse_overlap

    for folder in (data, valid):
        if folder is not None and folder.exists() and run.exists() and folder.samefile(run):
            raise InputError(f"{folder} is the data to train on; choose another folder for --out")
    folders = ("checkpoints", "cache", "overlays")
    written = ("recipe.json", "training.csv", "validation.csv", "init_from.txt", "warnings.txt")
    inputs = [Path(file) for file in (config, data, valid, *files) if file is not None]
    refuse_overlap(inputs, [run / name for name in folders])
    refuse_overlap([file for file in inputs if file.is_file()], [run / name for name in written])


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the folder; the first process of a run does so for all."""
    from rvos_deploy.files import holding

    if int(os.environ.get("RANK", "0")):
        yield
        return
    with holding(run, "training in"):
        yield


@contextmanager
def _training_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield update
