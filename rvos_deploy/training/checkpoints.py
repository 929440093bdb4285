"""Write and read checkpoints, each whole or not at all: safetensors and one small JSON file.

::

    RUN/clip.safetensors                                  the CLIP part, unless a tag names it
    RUN/checkpoints/step-00000500/weights.safetensors     for `export --checkpoint`
                                  optimizer.safetensors   moments of AdamW, by parameter
                                  state.json              progress of the run
    RUN/checkpoints/latest, best                          names of folders

Nothing is pickled or unpickled.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rvos_deploy import stopping
from rvos_deploy.errors import InputError
from rvos_deploy.files import cannot_write, replacing, replacing_folder
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.modules.safetensors_file import read_safetensors
from rvos_deploy.networks.pan2024.modules.checkpoint import (
    CLIP_PREFIX,
    Provenance,
    load_checkpoint,
    write_checkpoint,
)
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

FOLDER = "checkpoints"
CLIP = "clip.safetensors"
LATEST, BEST = "latest", "best"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_SCHEMA = "rvos-deploy/training-state/2"
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
_MAX_STATE_BYTES = 2**24
_Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class TrainingState:
    """Record the progress of a run.

    Attributes:
        step: optimizer steps done, over all stages.
        stage: number of the current stage.
        stage_step: steps done in this stage.
        recipe: the resolved recipe, as plain values.
        clip: fingerprint of the frozen CLIP part; empty if CLIP itself is trained.
        clip_source: file or open_clip tag of that part.
        best: best J&F so far; None before the first validation.
        scaler: state of the gradient scaler (16-mixed).
        versions: of the libraries.
        processes: number of processes that train together; None in states of older versions.
    """

    step: _Count
    stage: _Count
    stage_step: _Count
    recipe: dict[str, Any]
    clip: str
    clip_source: str = ""
    best: float | None = None
    scaler: dict[str, int | float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    processes: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Header(msgspec.Struct):
    schema: Literal["rvos-deploy/training-state/2"]


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters outside the frozen CLIP part, on the CPU, by name."""
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
    """Write a checkpoint, point ``latest`` (and ``best``) to it, and delete old ones.

    Whenever the process dies, ``latest`` names a complete folder. A stop signal waits for the
    checkpoint.

    Args:
        run: folder of the run.
        state: of the run.
        network: its parameters outside the CLIP part are saved.
        optimizer: its moments are saved.
        keep: number of newest checkpoints to keep.
        best: whether the checkpoint is the best so far.

    Returns:
        The folder of the checkpoint.

    Raises:
        InputError: the checkpoint cannot be written.
    """
    root = run / FOLDER
    target = root / f"step-{state.step:08d}"
    with stopping.deferred():
        try:
            # The target may exist, if the run was interrupted or is being repeated.
            with replacing_folder(target, overwrite=True) as partial:
                _save_weights(partial / WEIGHTS, network, state)
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


def _save_weights(file: Path, network: nn.Module, state: TrainingState) -> None:
    weights = trained_weights(network)
    if isinstance(network, RvosNetwork):
        model = network.config.as_dict()
        write_checkpoint(
            file, weights, Provenance(model, state.clip, state.clip_source, state.step)
        )
    else:  # CLIP itself
        save_file(weights, file)


def save_clip(file: Path, network: RvosNetwork) -> None:
    """Write the frozen CLIP part as a file for ``--clip-weights``.

    Raises:
        InputError: the file cannot be written.
    """
    state = {name: tensor.contiguous() for name, tensor in network.clip.model.state_dict().items()}
    try:
        with replacing(file) as temporary:
            save_file(state, temporary)
    except (OSError, SafetensorError) as error:
        raise InputError(cannot_write(file, error)) from error


@contextmanager
def hint_on_stop(run: Path, how: str) -> Iterator[None]:
    """Make a stop in this block name the last complete checkpoint; ``how`` resumes from it."""
    try:
        yield
    except stopping.Stopped as stop:
        folder = find_checkpoint(run)
        stop.hint = (
            f"{folder} is the last whole checkpoint, {how} goes on from it"
            if folder
            else f"no checkpoint was written to {run} yet"
        )
        raise


def find_checkpoint(run: Path, pointer: str = LATEST) -> Path | None:
    """Return the folder that ``latest`` or ``best`` of a run names; None if there is none yet."""
    file = run / FOLDER / pointer
    content = _read_file(file, _MAX_STATE_BYTES)
    if content is None:
        return None
    advice = "write the name of a step-* folder into it"
    if not re.fullmatch(rb"step-[0-9]{1,20}", content.strip()):
        raise InputError(f"{file} names no checkpoint; {advice}")
    folder = run / FOLDER / content.strip().decode()
    if not (folder / STATE).is_file():
        raise InputError(f"{file} names {folder.name}, which is not there; {advice}")
    return folder


def _read_file(file: Path, most: int) -> bytes | None:
    """Read a small file; return None if it is missing. Raises InputError if it is unreadable."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise InputError(f"{file} is no regular file of at most {most} bytes; remove it")
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def read_state(folder: Path) -> TrainingState:
    """Read ``state.json``. Raises InputError if it is damaged or of another version."""
    file = folder / STATE
    content = _read_file(file, _MAX_STATE_BYTES)
    if content is None:
        raise InputError(f"{file} does not exist; name another checkpoint in '{LATEST}'")
    try:
        msgspec.json.decode(content, type=_Header)
        return msgspec.json.decode(content, type=TrainingState)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is no state of a training run ({error}); name another checkpoint in "
            f"{file.parents[1] / LATEST}"
        ) from error


def load_weights(folder: Path, network: RvosNetwork) -> None:
    """Load the trained parameters of a checkpoint."""
    load_checkpoint(network, folder / WEIGHTS)


def load_optimizer(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the moments of AdamW. Raises InputError if they belong to other parameters."""
    named = _named(network, optimizer)
    for name, parts in read_moments(folder, named).items():
        parameter = named[name]
        optimizer.state[parameter] = {
            part: tensor if part == "step" else tensor.to(parameter.device)
            for part, tensor in parts.items()
        }


def load_scaler(folder: Path, precision: Any, scaler: dict[str, int | float]) -> None:
    """Restore the state of the gradient scaler, if Fabric's precision plugin has one.

    Raises:
        InputError: ``scaler`` is not the state of a gradient scaler.
    """
    try:
        precision.load_state_dict(scaler)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / STATE}: 'scaler' is no state of a gradient scaler ({error})"
        ) from error


def read_moments(folder: Path, named: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """Return the moments of AdamW in a checkpoint, by parameter and part.

    There are none if no step was taken, because a gradient scaler may skip all steps.

    Raises:
        InputError: the file is damaged, or belongs to other parameters.
    """
    file = folder / OPTIMIZER
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_safetensors(file).items():
        name, _, part = key.rpartition("/")
        by_name.setdefault(name, {})[part] = tensor
    if by_name and set(by_name) != set(named):
        odd = sorted(set(by_name) ^ set(named))[0]
        raise InputError(f"{file} is of another stage or network: it differs in {odd!r}")
    for name, parts in by_name.items():
        if set(parts) != _MOMENTS:
            raise InputError(
                f"{file} is damaged: of {name} it has {', '.join(sorted(parts))}, and needs "
                f"{', '.join(sorted(_MOMENTS))}"
            )
        _check_moments(file, name, parts, named[name])
    return by_name


def _check_moments(
    file: Path, name: str, parts: Mapping[str, Tensor], parameter: nn.Parameter
) -> None:
    step = parts["step"]
    if step.numel() != 1 or not step.is_floating_point() or not 0 < float(step) < math.inf:
        raise InputError(f"{file} is damaged: {name}/step is no count of steps")
    for part in sorted(_MOMENTS - {"step"}):
        found = parts[part]
        if found.shape != parameter.shape or found.dtype != parameter.dtype:
            raise InputError(
                f"{file} does not fit: {name}/{part} is {found.dtype} {list(found.shape)}, the "
                f"parameter is {parameter.dtype} {list(parameter.shape)}"
            )


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
