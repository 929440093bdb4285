"""Run eager PyTorch behind the runtime's interface, so that one stream drives both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.export.weights import Weights, load_network
from rvos_deploy.files import sha256_file
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.export_graph import Graph as ExportedGraph
from rvos_deploy.networks.pan2024.graphs import graphs as graphs_of
from rvos_deploy.networks.pan2024.network import model_config
from rvos_deploy.runtime.backends.base import Backend, Graph, Session
from rvos_deploy.runtime.backends.host_ops import HostOps


class TorchBackend(Backend):
    """Eager PyTorch on the CPU, with the weights that a bundle was exported from."""

    name = "pytorch"

    def __init__(self, bundle: Bundle, checkpoint: Path | None, threads: int) -> None:
        """Load the network.

        Args:
            bundle: an opened bundle.
            checkpoint: what the bundle was exported from; None for random weights.
            threads: for PyTorch's arithmetic.

        Raises:
            InputError: the checkpoint is missing, or is not the one that the bundle records.
        """
        torch.set_num_threads(threads)
        network = load_network(model_config(bundle.network), _weights(bundle, checkpoint))
        self._graphs = {graph.spec.name: graph for graph in graphs_of(network)}

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open the modules that these graphs were exported from."""
        names = bundle.graphs if graphs is None else graphs
        return Session({name: TorchGraph(self._graphs[name]) for name in names}, HostOps())

    def describe(self) -> dict[str, str]:
        """Return the library, its version and the device."""
        return {"name": self.name, "version": torch.__version__, "device": "cpu"}


class TorchGraph(Graph):
    """One graph's module, run eagerly."""

    def __init__(self, graph: ExportedGraph) -> None:
        super().__init__(graph.spec)
        self._module = graph.module

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Run the module without gradients."""
        arrays = [np.ascontiguousarray(inputs[tensor.name]) for tensor in self.spec.inputs]
        with torch.inference_mode():
            outputs = self._module(*map(torch.from_numpy, arrays))
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return {
            spec.name: tensor.numpy()
            for spec, tensor in zip(self.spec.outputs, tensors, strict=True)
        }

    def _close(self) -> None:
        """Do nothing; there is nothing to free."""


def _weights(bundle: Bundle, checkpoint: Path | None) -> Weights:
    """Return the bundle's weights: its random seed, or the checkpoint whose hash the bundle
    records.
    """
    recorded = bundle.manifest.weights
    if recorded.random:
        assert recorded.seed is not None  # checked when the manifest was read
        return Weights(random=True, seed=recorded.seed, clip=recorded.clip)
    if checkpoint is None:
        raise InputError(
            f"--compare pytorch needs the weights that {bundle.path} was exported from; pass "
            f"--checkpoint (it was {recorded.checkpoint})"
        )
    found = sha256_file(checkpoint)
    if found != recorded.checkpoint_sha256:
        raise InputError(
            f"checkpoint {checkpoint} (sha256 {found[:12]}...) is not the one that {bundle.path} "
            f"was exported from ({(recorded.checkpoint_sha256 or '')[:12]}...); pass that one"
        )
    return Weights(checkpoint=checkpoint, clip=recorded.clip)
