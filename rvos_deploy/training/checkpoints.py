"""Checkpoints that are there whole or not at all: safetensors and one small JSON file.

::

    RUN/checkpoints/step-00000500/weights.safetensors     as `export --checkpoint` takes it
                                  optimizer.safetensors   moments of AdamW, by parameter
                                  state.json              where the run stands
    RUN/checkpoints/latest, best                          names of folders

Nothing is pickled, and nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.export.checkpoint import CLIP_PREFIX, load_checkpoint
from rvos_deploy.files import cannot_write, replacing, replacing_folder
from rvos_deploy.json_file import write_json
from rvos_deploy.model.network import RvosNetwork

FOLDER = "checkpoints"
LATEST, BEST = "latest", "best"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_SCHEMA = "rvos-deploy/training-state/1"


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: optimizer steps done, over all stages.
        stage: number of the stage under way.
        stage_step: steps done of it.
        recipe: the resolved recipe, as plain values.
        clip: fingerprint of the frozen CLIP part; empty where CLIP itself is trained.
        best: best J&F so far, None before the first validation.
        scaler: state of the gradient scaler (16-mixed).
        versions: of what it was trained with.
    """

    step: int
    stage: int
    stage_step: int
    recipe: dict[str, Any]
    clip: str
    best: float | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """All parameters but those of the frozen CLIP part, on the CPU, by their names."""
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(CLIP_PREFIX)
    }


def save_checkpoint(
    run: Path,
    state: TrainingState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    keep: int = 2,
    best: bool = False,
) -> Path:
    """Write a checkpoint, point ``latest`` (and ``best``) to it, and drop old ones.

    Whenever the process dies, ``latest`` names a complete folder.

    Returns:
        The folder.

    Raises:
        InputError: it cannot be written.
    """
    root = run / FOLDER
    target = root / f"step-{state.step:08d}"
    try:
        # The target may be there: complete, but its run was interrupted, or is being repeated.
        with replacing_folder(target, overwrite=True) as partial:
            save_file(trained_weights(network), partial / WEIGHTS)
            save_file(_moments(network, optimizer), partial / OPTIMIZER)
            write_json(partial / STATE, {"schema": _SCHEMA, **asdict(state)})
            for file in partial.iterdir():
                _flush(file)
        for pointer in (LATEST, BEST) if best else (LATEST,):
            with replacing(root / pointer) as temporary:
                temporary.write_text(target.name + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(cannot_write(target, error)) from error
    _prune(root, keep)
    return target


def find_checkpoint(run: Path, pointer: str = LATEST) -> Path | None:
    """The folder that ``latest`` or ``best`` of a run names; None when there is none yet."""
    try:
        name = (run / FOLDER / pointer).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    folder = run / FOLDER / name
    if not (folder / STATE).is_file():
        raise InputError(
            f"{run / FOLDER / pointer} names {name}, which is not there; write the name of "
            "another step-* folder into it"
        )
    return folder


def read_state(folder: Path) -> TrainingState:
    """Read ``state.json``. InputError when it is damaged or of another version."""
    file = folder / STATE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("schema") != _SCHEMA:
            raise KeyError("schema")
        return TrainingState(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no state of a training run ({error})") from error


def load_weights(folder: Path, network: RvosNetwork) -> None:
    """Load the trained parameters of a checkpoint."""
    load_checkpoint(network, folder / WEIGHTS)


def load_optimizer(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW its moments back. InputError unless they are those of its parameters."""
    file = folder / OPTIMIZER
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        name, part = key.rsplit("/", 1)
        by_name.setdefault(name, {})[part] = tensor
    named = _named(network, optimizer)
    if by_name and set(by_name) != set(named):
        odd = sorted(set(by_name) ^ set(named))[0]
        raise InputError(f"{file} is of another stage or network: it differs in {odd}")
    for name, parts in by_name.items():
        parameter = named[name]
        optimizer.state[parameter] = {
            part: tensor if part == "step" else tensor.to(parameter.device)
            for part, tensor in parts.items()
        }


def clip_fingerprint(network: RvosNetwork) -> str:
    """Short hash that tells one frozen CLIP part from another: of a sample of each tensor."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(network.clip.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64].double().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{part}": tensor.detach().cpu().contiguous()
        for name, parameter in _named(network, optimizer).items()
        for part, tensor in optimizer.state.get(parameter, {}).items()
    }


def _named(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in network.named_parameters() if id(p) in ours}


def _prune(root: Path, keep: int) -> None:
    named = {
        (root / pointer).read_text(encoding="utf-8").strip()
        for pointer in (LATEST, BEST)
        if (root / pointer).is_file()
    }
    folders = sorted(root.glob("step-*"))
    for folder in folders[:-keep]:
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
