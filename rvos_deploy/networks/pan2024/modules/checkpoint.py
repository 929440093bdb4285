"""Read and write checkpoints: weights, and a record of their network.

Checkpoints are safetensors files, and nothing is unpickled. The file's metadata holds a
``Provenance``, so weights cannot be loaded into another network than the trained one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.networks.modules.safetensors_file import read_safetensors
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

CLIP_PREFIX = "clip."
_METADATA = "rvos_deploy"
_SCHEMA = 1
_FREE = ("name", "clip_pretrained", "input_size", "threshold")
"""Fields of a configuration that do not change the meaning of weights."""

_Line = Annotated[str, msgspec.Meta(max_length=1024)]


@dataclass(frozen=True)
class Provenance:
    """Record the network of a checkpoint.

    Attributes:
        model: the configuration, from ``ModelConfig.as_dict``.
        clip: fingerprint of the frozen CLIP part of the training.
        clip_source: file or open_clip tag of that part.
        step: number of optimizer steps.
    """

    model: dict[str, Any]
    clip: _Line
    clip_source: _Line
    step: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def config(self) -> ModelConfig:
        """Return the configuration. Raises InputError if this version does not know it."""
        return ModelConfig.from_dict(self.model)


def write_checkpoint(file: Path, state: Mapping[str, Tensor], provenance: Provenance) -> None:
    """Write weights with their provenance as safetensors."""
    record = json.dumps({"schema": _SCHEMA, **asdict(provenance)}, sort_keys=True)
    save_file(dict(state), file, metadata={_METADATA: record})


def read_provenance(file: Path) -> Provenance | None:
    """Return the provenance of a checkpoint; None if an older version wrote the checkpoint.

    Raises:
        InputError: the file cannot be read, or its metadata are damaged.
    """
    try:
        with safe_open(file, "pt") as stored:
            record = (stored.metadata() or {}).get(_METADATA)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error})") from error
    if record is None:
        return None
    try:
        return msgspec.json.decode(record.encode(), type=Provenance)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(
            f"the metadata of {file} are damaged ({error}); get the file again"
        ) from error


def check_configuration(file: Path, provenance: Provenance, config: ModelConfig) -> None:
    """Refuse weights that were trained with another configuration.

    Raises:
        InputError: fields differ; the message names them and their values in training.
    """
    trained, asked = provenance.config.as_dict(), config.as_dict()
    differing = [name for name in asked if name not in _FREE and asked[name] != trained[name]]
    if differing:
        shown = ", ".join(f"{name} = {trained[name]!r}" for name in differing[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise InputError(
            f"checkpoint {file} was trained with {shown}{more}; '{config.name}' has "
            + ", ".join(f"{asked[name]!r}" for name in differing[:4])
            + "; export the folder of the training run, or a recipe with that [model]"
        )


def clip_fingerprint(clip: nn.Module) -> str:
    """Return a hash of all weights of a CLIP part: 32 hex digits, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def check_clip(file: Path, provenance: Provenance, clip: nn.Module, source: str | None) -> None:
    """Refuse another CLIP part than that of the training.

    Args:
        file: the checkpoint.
        provenance: provenance of the checkpoint.
        clip: the loaded CLIP part.
        source: file or tag of ``clip``, for the message.

    Raises:
        InputError: the fingerprints differ; the message names the needed CLIP part.
    """
    if clip_fingerprint(clip) != provenance.clip:
        found = f"{source} holds other weights" if source else "these weights differ"
        raise InputError(
            f"checkpoint {file} was trained with the CLIP part of {provenance.clip_source} "
            f"(fingerprint {provenance.clip}); {found}; pass that one with --clip-weights"
        )


def load_checkpoint(network: RvosNetwork, file: Path) -> bool:
    """Load a checkpoint, and return whether it also holds the frozen CLIP part.

    Raises:
        InputError: the file is not safetensors, or not of this configuration; the message names
            the first weights that differ.
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
        module: receives the weights.
        state: the weights, by name.
        needed: names that ``state`` must have.
        source: source of the weights, for errors.
        config: name of the module's configuration, for errors.

    Raises:
        InputError: names, sizes or types differ; the message names the first weights that differ.
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
