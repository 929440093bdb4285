"""Load trained weights into the network. Safetensors only: nothing is ever unpickled."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.model.network import RvosNetwork

CLIP_PREFIX = "clip."


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped into memory.

    Raises:
        InputError: it is missing, no regular file, damaged, or of another format.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist, or is no regular file")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error})") from error


def load_checkpoint(network: RvosNetwork, file: Path) -> bool:
    """Load a checkpoint; returns whether it also held the frozen CLIP part.

    Raises:
        InputError: not a safetensors file, or not of this configuration; names the first weights
            that differ.
    """
    if not file.is_file():
        raise InputError(f"checkpoint {file} does not exist; give a .safetensors file")
    try:
        state = read_safetensors(file)
    except InputError as error:
        raise InputError(
            f"checkpoint {error}; get it again, or convert it with safetensors.torch.save_file"
        ) from error
    has_clip = any(name.startswith(CLIP_PREFIX) for name in state)
    needed = {name for name in network.state_dict() if has_clip or not name.startswith(CLIP_PREFIX)}
    load_state(network, state, needed, f"checkpoint {file}", network.config.name)
    return has_clip


def load_state(
    module: nn.Module, state: dict[str, Tensor], needed: set[str], source: str, config: str
) -> None:
    """Load weights into a module, all of them or none.

    Args:
        module: takes the weights.
        state: the weights, by name.
        needed: names of the weights that must be there.
        source: where they come from, for errors.
        config: name of the module's configuration, for errors.

    Raises:
        InputError: names, sizes or kinds of numbers differ; names the first ones.
    """
    own = module.state_dict()
    _refuse(source, config, "lacks", sorted(needed - set(state)))
    _refuse(source, config, "has unknown", sorted(set(state) - set(own)))
    sizes, kinds = [], []
    for name in sorted(state):
        found, wanted = state[name], own[name]
        if found.shape != wanted.shape:
            sizes.append(f"{name} {list(found.shape)} instead of {list(wanted.shape)}")
        elif found.is_floating_point() != wanted.is_floating_point() or found.is_complex():
            kinds.append(f"{name} {found.dtype} instead of {wanted.dtype}")
    _refuse(source, config, "has other sizes for", sizes)
    _refuse(source, config, "has other types for", kinds)
    module.load_state_dict(state, strict=False)


def _refuse(source: str, config: str, problem: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise InputError(
            f"{source} is not of configuration '{config}': it {problem} {shown}; "
            "export it with the configuration that it was trained with"
        )
