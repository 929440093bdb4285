"""Load the network's weights, and record their origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rvos_deploy.bundle.manifest import ClipOrigin, NetworkOrigin, Origin
from rvos_deploy.errors import InputError
from rvos_deploy.export.source import RunRecord, Store
from rvos_deploy.files import sha256_file
from rvos_deploy.graph_io.graph_spec import Precision
from rvos_deploy.networks.modules.safetensors_file import read_safetensors
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.checkpoint import (
    CLIP_PREFIX,
    Provenance,
    check_clip,
    check_configuration,
    clip_fingerprint,
    load_checkpoint,
    read_provenance,
)
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.parity.verification import MINIMUM_J_AND_F


@dataclass(frozen=True)
class Weights:
    """Choose the weights of an export, their number formats, and the limits of parity.

    Args:
        checkpoint: safetensors of the trained part, with or without the CLIP part.
        clip: open_clip tag or file; None: the checkpoint's CLIP part, or the preset's tag.
        random: use random weights, to try the pipeline.
        seed: of the random weights.
        store: "fp16" rounds and stores the weights as float16; the graphs compute in float32.
        precision: of the graphs; ``networks/pan2024/modules/precision.py`` lists the parts that
            stay in float32.
        minimum_j_and_f: least J&F of the clip's masks against PyTorch's, 0 to 1.
        maximum_slot_excess: largest excess cost of PyTorch's slots over the file's best ones;
            None: ``pan2024/network.py: default_slot_excess``.
        run: the training run of the checkpoint.
        url: where the checkpoint was fetched from, without secrets; None: it was here.
    """

    checkpoint: Path | None = None
    clip: str | None = None
    random: bool = False
    seed: int = 0
    store: Store = "fp32"
    precision: Precision = "fp32"
    minimum_j_and_f: float = MINIMUM_J_AND_F
    maximum_slot_excess: float | None = None
    run: RunRecord | None = None
    url: str | None = None


def load_network(config: ModelConfig, weights: Weights) -> RvosNetwork:
    """Build the network with these weights, in eval mode; see :func:`load_with_origin`."""
    return load_with_origin(config, weights)[0]


def load_with_origin(config: ModelConfig, weights: Weights) -> tuple[RvosNetwork, Origin]:
    """Build the network with these weights, in eval mode, and return their origin.

    The configuration and the CLIP part must be those that the checkpoint records (``Provenance``).

    Raises:
        InputError: no weights are named, they cannot be loaded, or they belong to another network.
    """
    torch.manual_seed(weights.seed)
    if weights.random:
        if weights.checkpoint is not None:
            raise InputError("--random-weights and --checkpoint exclude each other; leave one out")
        network = build_network(config, weights.clip).eval()
        clip = _clip_origin(network, weights.clip, weights.seed, None)
        return network, Origin(NetworkOrigin(random_seed=weights.seed), clip)
    file = _require_checkpoint(config, weights)
    provenance = read_provenance(file)
    if provenance is not None:
        check_configuration(file, provenance, config)
    has_clip = any(name.startswith(CLIP_PREFIX) for name in read_safetensors(file))
    source = None if has_clip else _clip_source(config, weights, file, provenance)
    network = build_network(config, source).eval()
    load_checkpoint(network, file)
    if provenance is not None:
        check_clip(file, provenance, network.clip, source)
    origin = NetworkOrigin(
        file=file.name,
        sha256=sha256_file(file),
        recorded=provenance is not None,
        run=weights.run.name if weights.run else None,
        checkpoint=weights.run.checkpoint if weights.run else None,
        step=provenance.step if provenance else None,
        url=weights.url,
    )
    return network, Origin(origin, _clip_origin(network, source or str(file), None, provenance))


def _require_checkpoint(config: ModelConfig, weights: Weights) -> Path:
    if weights.checkpoint is not None:
        if not weights.checkpoint.is_file():
            raise InputError(
                f"checkpoint {weights.checkpoint} does not exist; give a .safetensors file"
            )
        return weights.checkpoint
    tag = weights.clip or config.clip_pretrained
    clip = f"open_clip's '{tag}'" if tag else "its own file"
    raise InputError(
        f"export '{config.name}' needs trained weights: give the folder of a training run, or pass "
        f"--checkpoint FILE.safetensors (unless it holds the CLIP part, that comes from {clip}, or "
        "by --clip-weights FILE), or --random-weights to try the pipeline without"
    )


def _clip_source(
    config: ModelConfig, weights: Weights, file: Path, provenance: Provenance | None
) -> str:
    """Return tag or file of the CLIP part for a checkpoint without one."""
    source = weights.clip or config.clip_pretrained
    if source is None:
        known = f" ({provenance.clip_source}, {provenance.clip})" if provenance else ""
        raise InputError(
            f"checkpoint {file} holds no CLIP part, and '{config.clip}' has no published weights; "
            f"pass the CLIP part that it was trained with{known} by --clip-weights FILE, or export "
            "the folder of the training run, which keeps it"
        )
    return source


def _clip_origin(
    network: RvosNetwork, source: str | None, seed: int | None, provenance: Provenance | None
) -> ClipOrigin:
    file = Path(source) if source is not None and Path(source).is_file() else None
    return ClipOrigin(
        fingerprint=clip_fingerprint(network.clip),
        file=file.name if file else None,
        sha256=sha256_file(file) if file else None,
        tag=source if source is not None and file is None else None,
        random_seed=seed if source is None else None,
        recorded=provenance is not None,
    )
