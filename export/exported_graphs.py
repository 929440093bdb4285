"""Load the PyTorch modules that a bundle was exported from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.files import sha256_file
from rvos_deploy.networks.export_graph import Graph

Load = Callable[[Bundle, Path | None], tuple[Graph, ...]]
"""A function of the bundle and its checkpoint (None: random weights)."""


def exported_graphs(bundle: Bundle, checkpoint: Path | None) -> tuple[Graph, ...]:
    """Return the modules of a bundle's graphs with its weights, in float32.

    Args:
        bundle: an opened bundle.
        checkpoint: the checkpoint that the bundle was exported from; None: random weights.

    Raises:
        InputError: the checkpoint is missing or differs from the bundle's record, or PyTorch cannot
            load networks of this family.
    """
    family = bundle.network.family
    if family not in LOADERS:
        raise InputError(
            f"the bundle holds a network of the family '{family}', but PyTorch can load only "
            f"{', '.join(LOADERS)}"
        )
    recorded = bundle.manifest.weights
    if recorded.random:
        return LOADERS[family](bundle, None)
    if checkpoint is None:
        raise InputError(
            f"--compare pytorch needs the weights that {bundle.path} was exported from; pass "
            f"--checkpoint (it was {recorded.checkpoint})"
        )
    found = sha256_file(checkpoint)
    if found != recorded.checkpoint_sha256:
        raise InputError(
            f"checkpoint {checkpoint} (sha256 {found[:12]}...) is not the one that {bundle.path} "
            f"was exported from ({(recorded.checkpoint_sha256 or '')[:12]}...); pass that file"
        )
    return LOADERS[family](bundle, checkpoint)


def _pan2024(bundle: Bundle, checkpoint: Path | None) -> tuple[Graph, ...]:
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.networks.pan2024.graphs import graphs
    from rvos_deploy.networks.pan2024.network import model_config

    recorded = bundle.manifest.weights
    if checkpoint is None:
        assert recorded.seed is not None  # checked when the manifest was read
        weights = Weights(random=True, seed=recorded.seed, clip=recorded.clip)
    else:
        weights = Weights(checkpoint=checkpoint, clip=recorded.clip)
    return graphs(load_network(model_config(bundle.network), weights))


def _online_refer(bundle: Bundle, checkpoint: Path | None) -> tuple[Graph, ...]:
    from rvos_deploy.networks.online_refer.config import OnlineReferConfig
    from rvos_deploy.networks.online_refer.graphs import graphs
    from rvos_deploy.networks.online_refer.modules.checkpoint import load_checkpoint, random_network
    from rvos_deploy.networks.online_refer.modules.network import OnlineRefer

    config = bundle.config
    assert isinstance(config, OnlineReferConfig)
    if checkpoint is None:
        return graphs(random_network(config, bundle.manifest.weights.seed or 0))
    network = OnlineRefer(config).eval()
    load_checkpoint(network, checkpoint)
    return graphs(network)


LOADERS: dict[str, Load] = {"pan2024": _pan2024, "online_refer": _online_refer}
"""Loaders by family."""
