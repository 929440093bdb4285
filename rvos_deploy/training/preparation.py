"""Prepare a run before its first step: data, network, and whether it may be resumed."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open

from rvos_deploy.datasets import (
    DataSplit,
    find_layout,
    read_mevis,
    read_ref_youtube_vos,
)
from rvos_deploy.datasets.moving_sprites.looks import require_font
from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import current_keys
from rvos_deploy.networks.pan2024.modules.checkpoint import load_checkpoint
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.training import checkpoints
from rvos_deploy.training.checkpoints import TrainingState
from rvos_deploy.training.distributed import on_first
from rvos_deploy.training.init_from import InitReport
from rvos_deploy.training.init_from import init_from as load_published
from rvos_deploy.training.objective import select_trained
from rvos_deploy.training.recipe import OPERATIONAL, Recipe, Stage
from rvos_deploy.training.validation import check_validation, render_validation

RECIPE = "recipe.json"


def make_fabric(recipe: Recipe, accelerator: str) -> Fabric:
    """Launch Fabric on one device, or as one process of torchrun."""
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
    """Read the train split of a recipe; return None for rendered clips, after checking the font."""
    if recipe.data == "sprites":
        if data is not None:
            raise InputError(
                '--data is not used by data = "sprites", whose clips are rendered; leave it out, '
                f"or give the preset '{recipe.model.name}' as CONFIG to train on {data}"
            )
        if recipe.sprites.emoji:
            require_font()
        return None
    if data is None:
        raise InputError(f"data = '{recipe.data}' needs --data DIR, the folder of its train split")
    layout = find_layout(data)
    if layout not in (None, recipe.data):
        raise InputError(
            f"{data} is laid out as {layout}, but the recipe says data = '{recipe.data}'; pass "
            f"--set data={layout}, or another folder"
        )
    return (read_mevis if recipe.data == "mevis" else read_ref_youtube_vos)(data)


def make_network(
    recipe: Recipe, clip_weights: str | None, init_from: str | os.PathLike[str] | None
) -> tuple[RvosNetwork, InitReport | None]:
    """Build the network with its CLIP part, seeded, and report published weights that it loads."""
    if recipe.preflight and not (clip_weights or recipe.model.clip_pretrained):
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
    """Return the origin of the CLIP part: an open_clip tag, or the file in the run's folder."""
    source = clip_weights or recipe.model.clip_pretrained
    if source is None or Path(source).is_file():
        return checkpoints.CLIP
    return source


def resumed_state(folder: Path, fresh: TrainingState, recipe: Recipe) -> TrainingState:
    """Return the state to resume from, after checking that the run is the same."""
    state = checkpoints.read_state(folder)
    if state.stage >= len(recipe.stages):
        raise InputError(
            f"{folder} stands in stage {state.stage}, but the recipe has stages 0 to "
            f"{len(recipe.stages) - 1}; resume with the recipe that it was trained with"
        )
    plain = json.loads(json.dumps(fresh.recipe))  # tuples become lists, as in the file
    before = _decisive(_with_defaults(state.recipe), state.stage)
    now = _decisive(plain, state.stage)
    if changed := _first_difference(before, now):
        raise InputError(
            f"{folder} was trained with another {changed}; resume with the recipe and the --set "
            f"values that {folder.parent.parent / RECIPE} records, or start in another folder with "
            "--init-from"
        )
    if state.clip != fresh.clip:
        raise InputError(
            f"{folder} was trained with other CLIP weights; pass the same --clip-weights"
        )
    _check_steps(folder, state, recipe)
    return replace(
        state,
        recipe=fresh.recipe,
        clip_source=fresh.clip_source,
        versions=fresh.versions,
    )


def warn_of_other_processes(folder: Path, before: int | None, now: int) -> None:
    """Warn if a run resumes with another number of processes, and say what that changes.

    Args:
        folder: the checkpoint.
        before: processes that trained it; None: the checkpoint does not record them.
        now: processes that resume it.
    """
    if before is None or before == now:
        return
    warnings.warn(
        f"{folder} was trained with {before} process{'es' if before > 1 else ''}, and the run goes "
        f"on with {now}: a step has the same clips, but the processes share them in another way "
        "and draw other points for the mask losses, so the numbers will differ from those of an "
        "uninterrupted run",
        stacklevel=2,
    )


def _check_steps(folder: Path, state: TrainingState, recipe: Recipe) -> None:
    """Refuse a state whose steps contradict the recipe."""
    before = sum(stage.steps for stage in recipe.stages[: state.stage])
    most = recipe.stages[state.stage].steps
    if state.stage_step > most or state.step != before + state.stage_step:
        raise InputError(
            f"{folder} stands at step {state.step}, step {state.stage_step} of stage "
            f"{state.stage}; in the recipe that stage has steps {before} to {before + most}, so "
            "the state is damaged; name another checkpoint in 'latest'"
        )


def _with_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe with present names, and defaults for fields it does not have."""
    if isinstance(model := recipe.get("model"), dict):
        recipe = {**recipe, "model": current_keys(model)}
    try:
        whole = msgspec.convert(recipe, Recipe).as_dict()
    except msgspec.ValidationError:
        return recipe  # the invalid value differs from the present recipe, and is reported so
    filled: dict[str, Any] = json.loads(json.dumps(whole))
    return filled


def _decisive(recipe: dict[str, Any], stage: int) -> dict[str, Any]:
    """Return the part of a recipe that a resumed run must not change; later stages may change."""
    kept = {name: value for name, value in recipe.items() if name not in OPERATIONAL}
    stages = recipe.get("stages")
    return {**kept, "stages": stages[: stage + 1] if isinstance(stages, list) else None}


def _first_difference(before: object, now: object, key: str = "") -> str | None:
    """Return the first key, as ``--set`` names it, whose values differ; None if all agree."""
    if before == now:
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not isinstance(before, dict) or not isinstance(now, dict):
        return key
    for name in now:
        inner = f"{key}.{name}" if key else {"stages": "stage"}.get(name, str(name))
        if found := _first_difference(before.get(name), now[name], inner):
            return found
    return key


def check_resumable(run: Path, folder: Path, stage: Stage, network: RvosNetwork) -> None:
    """Read the other files of a resumed run, before the run writes anything.

    Args:
        run: folder of the run.
        folder: checkpoint in the middle of a stage.
        stage: that stage.
        network: its parameters belong to the optimizer.

    Raises:
        InputError: moments of the optimizer, or the pointer to the best checkpoint, are damaged.
    """
    checkpoints.read_moments(folder, select_trained(network, stage))
    checkpoints.find_checkpoint(run, checkpoints.BEST)


def read_validation_data(
    fabric: Fabric, recipe: Recipe, run: Path, valid: str | os.PathLike[str] | None
) -> DataSplit | None:
    """Read the valid split in every process; process 0 renders the one of Moving Sprites first.

    Returns:
        The split; None if the recipe has no validation.

    Raises:
        InputError: the split cannot be read, or has no ground truth.
    """
    if not recipe.validate_every:
        return None
    if valid is not None:
        layout = find_layout(valid)
        if layout is None:
            raise InputError(
                f"{valid} has no ground truth, so J&F cannot be measured; pass a split that has "
                "masks (of MeViS, valid_u) as --valid, or leave it out"
            )
        split = (read_mevis if layout == "mevis" else read_ref_youtube_vos)(valid)
        check_validation(split, recipe.validation_videos)
        return split
    if recipe.data != "sprites":
        return None
    on_first(fabric, lambda: render_validation(recipe, run / "valid"))
    return read_mevis(run / "valid")


def missing_validation(recipe: Recipe, valid: str | os.PathLike[str] | None) -> str | None:
    """Return a warning if a recipe validates but has no split for it, else None."""
    if not recipe.validate_every or recipe.data == "sprites" or valid is not None:
        return None
    return (
        f"the recipe validates every {recipe.validate_every} steps, but --valid is not given, so "
        "no J&F is measured and no best checkpoint is kept; pass --valid DIR, or --set "
        "validate_every=0"
    )


def _initialise(network: RvosNetwork, file: Path) -> InitReport | None:
    """Load a checkpoint of rvos-deploy whole, or the fitting part of a published one."""
    if not file.is_file():
        raise InputError(f"--init-from {file} does not exist; give a file of weights")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as stored:
                ours = any(name.startswith("frame_decoder.") for name in stored.keys())  # noqa: SIM118
        except SafetensorError:
            ours = True  # load_checkpoint reports the damage
        if ours:
            load_checkpoint(network, file)
            return None
    return load_published(network, file)
