"""Train a network with a recipe and a data set: ``rvos-deploy train``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rvos_deploy.training.trainer import TrainingResult


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="Recipe of the package (sprites_tiny, mevis_tiny, mevis_large), recipe file "
            "(.toml), or model preset (tiny, base, large, large-paper) for the data in --data.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="RUN",
            help="Folder of the run, for checkpoints, logs and recipe.json.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Train split of MeViS or Ref-YouTube-VOS, or of data in the same layout. Moving "
            "Sprites need no data, because they are rendered during training.",
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(
            "--valid",
            metavar="DIR",
            help="Split with ground truth, to measure J&F during training and to keep the best "
            "checkpoint.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one key of the recipe, for example stage.0.steps=200 or model.dim=64. "
            "Repeat the option for more keys; docs/recipes.md lists all keys.",
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="FILE",
            help="Weights to start from: weights.safetensors of an earlier run, or a checkpoint of "
            "Mask2Former or FC-CLIP (.safetensors or .pth), whose pixel decoder and transformer "
            "decoder are loaded.",
        ),
    ] = None,
    clip_weights: Annotated[
        str | None,
        typer.Option(
            "--clip-weights",
            metavar="TAG|FILE",
            help="Weights of the frozen CLIP part: an open_clip tag or a file. Default: the "
            "preset's tag; 'tiny' has none.",
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
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight/--no-preflight",
            help="Before long stages, check that motion can be learned, and stop if it cannot. "
            "RUN/preflight.json holds the results.",
        ),
    ] = True,
    gates: Annotated[bool, typer.Option("--gates/--no-gates", hidden=True)] = True,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Check that the recipe runs on this machine: two steps of each stage, on small "
            "clips, with random CLIP weights.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, help="Seed of the run. Default: the recipe's own."
        ),
    ] = None,
) -> None:
    """Train a network with a recipe. On several GPUs, start the same command with torchrun."""
    import logging
    from dataclasses import replace

    from rvos_deploy.console.extras import let_threads_sleep, needs_extra
    from rvos_deploy.console.output import count_progress

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
    bars = count_progress("steps", "steps/s")
    with hint_on_stop(out, "--resume"), _hold(out), bars as progress:
        options = trainer.TrainingOptions(
            data=data,
            valid=valid,
            init_from=init_from,
            clip_weights=clip_weights,
            resume=resume,
            steps=steps,
        )
        result = trainer.train(recipe, out, options, progress)
    if _is_first_process():
        _print(result, recipe.steps, out)


def _print(result: TrainingResult, steps: int, out: Path) -> None:
    typer.echo(f"{result.checkpoint}: step {result.steps} of {steps}, {result.seconds:.1f} s")
    if result.best_checkpoint is not None:
        typer.echo(f"best: {result.best_checkpoint}, J&F {result.best:.4f}")
    bundle = out.with_name(f"{out.name}-bundle")
    typer.echo("export it:")
    typer.echo(shlex.join(["rvos-deploy", "export", str(out), "--out", str(bundle)]))


def _check_inputs(
    run: Path, config: str, data: Path | None, valid: Path | None, *files: Path | str | None
) -> None:
    """Refuse a run folder that is a data set, or whose own files are inputs."""
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


def _is_first_process() -> bool:
    """Tell whether this is the first of the processes that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def _hold(run: Path) -> Iterator[None]:
    """Lock the folder against other runs; the first process locks it for all processes."""
    from rvos_deploy.files import holding

    if not _is_first_process():
        yield
        return
    with holding(run, "training in"):
        yield
