"""Run eager PyTorch behind the runtime's interface, so that one stream drives both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.export.exported_graphs import exported_graphs
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.export_graph import Graph as ExportedGraph
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
        self._graphs = {graph.spec.name: graph for graph in exported_graphs(bundle, checkpoint)}

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
        # PyTorch has no read-only tensors, and warns of arrays as Pillow gives them.
        arrays = [np.require(inputs[t.name], requirements=("C", "W")) for t in self.spec.inputs]
        with torch.inference_mode():
            outputs = self._module(*map(torch.from_numpy, arrays))
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return {
            spec.name: tensor.numpy()
            for spec, tensor in zip(self.spec.outputs, tensors, strict=True)
        }

    def _close(self) -> None:
        """Do nothing; there is nothing to free."""
