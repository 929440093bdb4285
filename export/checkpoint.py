"""Load trained weights into the network. Safetensors only: nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from rvos_deploy.errors import InputError
from rvos_deploy.model.network import RvosNetwork

CLIP_PREFIX = "clip."


def load_checkpoint(network: RvosNetwork, file: Path) -> bool:
    """Load a checkpoint; returns whether it also held the frozen CLIP part.

    Raises:
        InputError: not a safetensors file, or not of this configuration; names the first weights
            that differ.
    """
    if not file.is_file():
        raise InputError(f"checkpoint {file} does not exist; give a .safetensors file")
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise InputError(
            f"checkpoint {file} is not a safetensors file ({error}); convert it with "
            "safetensors.torch.save_file"
        ) from error
    own = network.state_dict()
    has_clip = any(name.startswith(CLIP_PREFIX) for name in state)
    needed = {name for name in own if has_clip or not name.startswith(CLIP_PREFIX)}
    _refuse(file, network.config.name, "lacks", sorted(needed - set(state)))
    _refuse(file, network.config.name, "has unknown", sorted(set(state) - set(own)))
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(needed)
        if state[name].shape != own[name].shape
    ]
    _refuse(file, network.config.name, "has other sizes for", wrong)
    network.load_state_dict(state, strict=False)
    return has_clip


def _refuse(file: Path, config: str, problem: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise InputError(
            f"checkpoint {file} is not of configuration '{config}': it {problem} {shown}; "
            "export it with the configuration that it was trained with"
        )
