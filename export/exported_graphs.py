"""Load the PyTorch modules that a bundle was exported from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.export.pytorch_weights import has_record, load_record
from rvos_deploy.files import sha256_file
from rvos_deploy.networks.export_graph import Graph

Load = Callable[[Bundle, Path | None, str | None], tuple[Graph, ...]]
"""A function of the bundle, its checkpoint (None: random weights), and the file of its CLIP part
(None: that of the bundle's record)."""


def exported_graphs(
    bundle: Bundle, checkpoint: Path | None = None, clip: str | None = None
) -> tuple[Graph, ...]:
    """Return the modules of a bundle's graphs with its weights, in float32.

    The weights are read from the bundle itself (``pytorch_weights.py``). A bundle of an older
    version has no record of them: it needs its checkpoint, or was exported with random weights.

    Args:
        bundle: an opened bundle.
        checkpoint: the checkpoint that the bundle was exported from; None: the bundle's own record.
        clip: file of the CLIP part of a checkpoint that has none.

    Raises:
        InputError: the bundle has no record and the checkpoint is missing, differs from the
            bundle's, or PyTorch cannot load networks of this family.
        BundleError: the record cannot be read.
    """
    family = bundle.network.family
    if family not in LOADERS:
        raise InputError(
            f"the bundle holds a network of the family '{family}', but PyTorch can load only "
            f"{', '.join(LOADERS)}"
        )
    recorded = bundle.manifest.weights
    if checkpoint is not None:
        _require_same(bundle, checkpoint)
    elif has_record(bundle):
        graphs = LOADERS[family](bundle, None, None)
        load_record(bundle, graphs)
        return graphs
    elif not recorded.random:
        raise InputError(
            f"{bundle.path} does not say where PyTorch's weights are, because an older version "
            "wrote it or its graphs hold them in another form; export it again, or pass "
            f"--checkpoint FILE (it was {recorded.checkpoint}) and, if that holds no CLIP part, "
            "--clip-weights FILE"
        )
    return LOADERS[family](bundle, checkpoint, clip)


def _require_same(bundle: Bundle, checkpoint: Path) -> None:
    """Refuse another checkpoint than the one that the bundle was exported from."""
    if not checkpoint.is_file():
        raise InputError(f"checkpoint {checkpoint} does not exist; check the path")
    wanted, found = bundle.manifest.weights.checkpoint_sha256, sha256_file(checkpoint)
    if found != wanted:
        raise InputError(
            f"checkpoint {checkpoint} (sha256 {found[:12]}...) is not the one that {bundle.path} "
            f"was exported from ({(wanted or 'random weights')[:14]}...); pass that file"
        )


def _pan2024(bundle: Bundle, checkpoint: Path | None, clip: str | None) -> tuple[Graph, ...]:
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.networks.pan2024.graphs import graphs
    from rvos_deploy.networks.pan2024.network import model_config

    recorded = bundle.manifest.weights
    if checkpoint is None:
        random_clip = recorded.clip if recorded.random and not has_record(bundle) else None
        weights = Weights(random=True, seed=recorded.seed or 0, clip=random_clip)
    else:
        weights = Weights(checkpoint=checkpoint, clip=clip or recorded.clip)
    return graphs(load_network(model_config(bundle.network), weights))


def _online_refer(bundle: Bundle, checkpoint: Path | None, clip: str | None) -> tuple[Graph, ...]:
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
