"""Find the source of an export: a training run, a recipe or a preset, and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import PRESETS, ModelConfig, preset

Pointer = Literal["best", "latest"]
"""A checkpoint of a training run."""

Store = Literal["fp32", "fp16"]
"""Number format that weights are stored in."""


@dataclass(frozen=True)
class RunRecord:
    """Name the training run that weights come from, its checkpoint and its step."""

    name: str
    checkpoint: Pointer
    step: int


@dataclass(frozen=True)
class ExportSource:
    """Hold a configuration and the origin of its weights.

    Args:
        config: of the network.
        checkpoint: file of the trained weights.
        clip: file or open_clip tag of the CLIP part.
        run: the training run, if the weights come from one.
        url: where the checkpoint was fetched from, without secrets; None: it was here.
    """

    config: ModelConfig
    checkpoint: Path | None = None
    clip: str | None = None
    run: RunRecord | None = None
    url: str | None = None


def find_source(
    name: str,
    checkpoint: Path | None = None,
    clip: str | None = None,
    pointer: Pointer | None = None,
) -> ExportSource:
    """Find the source that ``export`` was given.

    Args:
        name: folder of a training run, a recipe (file or name), or a preset's name.
        checkpoint: weights for a recipe or preset.
        clip: open_clip tag or file of the CLIP part; None: the run's own.
        pointer: checkpoint of a run; None: the best, or the latest if none was validated.

    Raises:
        InputError: there is no such source, or the options do not fit it.
    """
    folder = Path(name)
    if folder.is_dir() and name not in PRESETS:
        if checkpoint is not None:
            raise InputError(
                f"{name} is a training run and has its own weights; leave --checkpoint out, or "
                "name the preset or recipe that the file belongs to"
            )
        return _run_source(folder, clip, pointer)
    if pointer is not None:
        raise InputError(f"'{name}' is not the folder of a training run; leave --which out")
    return ExportSource(_configuration(name), checkpoint, clip)


def _configuration(name: str) -> ModelConfig:
    from rvos_deploy.training.recipe_file import packaged_recipes, read_recipe

    if name in PRESETS:
        return preset(name)
    recipes = packaged_recipes()
    if name in recipes or name.endswith(".toml"):
        return read_recipe(name).model
    raise InputError(
        f"'{name}' is neither the folder of a training run, nor a recipe (a .toml file, or "
        f"{', '.join(recipes)}), nor a preset ({', '.join(PRESETS)}); check the name"
    )


def _run_source(run: Path, clip: str | None, pointer: Pointer | None) -> ExportSource:
    from rvos_deploy.training import checkpoints

    chosen: Pointer = pointer or "best"
    folder = checkpoints.find_checkpoint(run, chosen)
    if folder is None and pointer is None:
        chosen = "latest"
        folder = checkpoints.find_checkpoint(run, chosen)
    if folder is None:
        what = f"has no {pointer} checkpoint" if pointer else "holds no checkpoint"
        raise InputError(
            f"{run} {what}; give the folder that 'rvos-deploy train' was given as --out"
        )
    state = checkpoints.read_state(folder)
    model = state.recipe.get("model")
    if not isinstance(model, dict):
        raise InputError(
            f"{folder} trained CLIP alone; pass its clip.safetensors by --clip-weights"
        )
    own = run / checkpoints.CLIP
    kept = str(own) if state.clip_source == checkpoints.CLIP else state.clip_source
    return ExportSource(
        ModelConfig.from_dict(model),
        folder / checkpoints.WEIGHTS,
        clip or kept or None,
        RunRecord(run.resolve().name, chosen, state.step),
    )
