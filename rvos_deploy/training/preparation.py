"""What is settled before the first step: data, network, and whether a run may go on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open

from rvos_deploy.datasets import DataSplit, read_mevis, read_ref_youtube_vos
from rvos_deploy.datasets.moving_sprites.looks import require_font
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.modules.checkpoint import load_checkpoint
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.training import checkpoints
from rvos_deploy.training.checkpoints import TrainingState
from rvos_deploy.training.init_from import InitReport
from rvos_deploy.training.init_from import init_from as load_published
from rvos_deploy.training.objective import select_trained
from rvos_deploy.training.recipe import OPERATIONAL, Recipe, Stage
from rvos_deploy.training.validation import sprite_validation

RECIPE = "recipe.json"


def make_fabric(recipe: Recipe, accelerator: str) -> Fabric:
    """Launch Fabric on one device, or as one of the processes that torchrun started."""
    local, world = (int(os.environ.get(n, 1)) for n in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=recipe.precision,
    )
    fabric.launch()
    return fabric


def read_training_data(recipe: Recipe, data: str | os.PathLike[str] | None) -> DataSplit | None:
    """Read the train split of a recipe; None for clips that are rendered, once they can be."""
    if recipe.data == "sprites":
        if data is not None:
            raise InputError('--data is not used by data = "sprites"; set data = "mevis" for it')
        if recipe.sprites.emoji:
            require_font()
        return None
    if data is None:
        raise InputError(f"data = '{recipe.data}' needs --data DIR, the folder of its train split")
    return (read_mevis if recipe.data == "mevis" else read_ref_youtube_vos)(data)


def make_network(
    recipe: Recipe, clip_weights: str | None, init_from: str | os.PathLike[str] | None
) -> tuple[RvosNetwork, InitReport | None]:
    """Build the network with its CLIP part, seeded; with a report of foreign weights loaded."""
    if recipe.gates and not (clip_weights or recipe.model.clip_pretrained):
        raise InputError(
            f"the CLIP part of '{recipe.model.name}' has no published weights; train some with "
            "'rvos-deploy pretrain-clip --out CLIP' and pass --clip-weights CLIP/clip.safetensors"
        )
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.model, clip_weights or recipe.model.clip_pretrained)
    if init_from is not None:
        return network, _initialise(network, Path(init_from))
    return network, None


def clip_source(recipe: Recipe, clip_weights: str | None) -> str:
    """Where the CLIP part comes from: an open_clip tag, or the file that the run keeps it in."""
    source = clip_weights or recipe.model.clip_pretrained
    if source is None or Path(source).is_file():
        return checkpoints.CLIP
    return source


def resumed_state(folder: Path, fresh: TrainingState, recipe: Recipe) -> TrainingState:
    """The state to go on from, once it is sure that the run is the same."""
    state = checkpoints.read_state(folder)
    if state.stage >= len(recipe.stages):
        raise InputError(
            f"{folder} stands in stage {state.stage}, but the recipe has stages 0 to "
            f"{len(recipe.stages) - 1}; resume with the recipe that it was trained with"
        )
    plain = json.loads(json.dumps(fresh.recipe))  # as the file has it: lists, no tuples
    before, now = _decisive(state.recipe, state.stage), _decisive(plain, state.stage)
    if changed := [name for name in now if now[name] != before.get(name)]:
        raise InputError(
            f"{folder} was trained with another {changed[0]}; resume with the recipe that "
            f"{folder.parent.parent / RECIPE} records, or start in another folder with --init-from"
        )
    if state.clip != fresh.clip:
        raise InputError(
            f"{folder} was trained with other CLIP weights; pass the same --clip-weights"
        )
    _check_steps(folder, state, recipe)
    return replace(
        state, recipe=fresh.recipe, clip_source=fresh.clip_source, versions=fresh.versions
    )


def _check_steps(folder: Path, state: TrainingState, recipe: Recipe) -> None:
    """Refuse steps that do not add up."""
    before = sum(stage.steps for stage in recipe.stages[: state.stage])
    most = recipe.stages[state.stage].steps
    if state.stage_step > most or state.step != before + state.stage_step:
        raise InputError(
            f"{folder} stands at step {state.step}, step {state.stage_step} of stage "
            f"{state.stage}; in the recipe that stage has steps {before} to {before + most}, so "
            "the state is damaged; name another checkpoint in 'latest'"
        )


def _decisive(recipe: dict[str, Any], stage: int) -> dict[str, Any]:
    """What of a recipe a resumed run must not change: later stages it may."""
    kept = {name: value for name, value in recipe.items() if name not in OPERATIONAL}
    stages = recipe.get("stages")
    return {**kept, "stages": stages[: stage + 1] if isinstance(stages, list) else None}


def check_resumable(run: Path, folder: Path, stage: Stage, network: RvosNetwork) -> None:
    """Read what else a resumed run will need, before the run writes anything.

    Args:
        run: the folder of the run.
        folder: the checkpoint to go on from, in the middle of a stage.
        stage: that stage.
        network: whose parameters the optimizer holds.

    Raises:
        InputError: moments of the optimizer, or the pointer to the best checkpoint, are damaged.
    """
    checkpoints.read_moments(folder, select_trained(network, stage))
    checkpoints.find_checkpoint(run, checkpoints.BEST)


def read_validation_data(
    recipe: Recipe, run: Path, valid: str | os.PathLike[str] | None
) -> DataSplit | None:
    """Read or render the valid split; None where a recipe has none."""
    if not recipe.validate_every:
        return None
    if valid is not None:
        return (read_ref_youtube_vos if recipe.data == "ref-youtube-vos" else read_mevis)(valid)
    return sprite_validation(recipe, run / "valid") if recipe.data == "sprites" else None


def _initialise(network: RvosNetwork, file: Path) -> InitReport | None:
    """Load our own checkpoint whole, or what fits of one published by others."""
    if not file.is_file():
        raise InputError(f"--init-from {file} does not exist; give a file of weights")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as stored:
                ours = any(name.startswith("frame_decoder.") for name in stored.keys())  # noqa: SIM118
        except SafetensorError:
            ours = True  # load_checkpoint says what is wrong with it
        if ours:
            load_checkpoint(network, file)
            return None
    return load_published(network, file)
