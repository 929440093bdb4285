"""Run eager PyTorch behind the runtime's interface, so that one stream drives both."""

from __future__ import annotations

import copy
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

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        checkpoint: Path | None = None,
        clip: str | None = None,
        *,
        autocast: bool = False,
    ) -> None:
        """Load the network.

        Args:
            bundle: an opened bundle.
            threads: for PyTorch's arithmetic.
            checkpoint: what the bundle was exported from; None: the bundle's own weights.
            clip: file of the CLIP part of a checkpoint that has none.
            autocast: compute in bfloat16 where ``torch.autocast`` does.

        Raises:
            InputError, BundleError: as ``exported_graphs``.
        """
        torch.set_num_threads(threads)
        self.graphs = {g.spec.name: g for g in exported_graphs(bundle, checkpoint, clip)}
        self.autocast = autocast

    def with_autocast(self) -> TorchBackend:
        """Return a back end of the same modules that computes in bfloat16 by autocast."""
        other = copy.copy(self)
        other.autocast = True
        return other

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open the modules that these graphs were exported from."""
        names = bundle.graphs if graphs is None else graphs
        opened = {name: TorchGraph(self.graphs[name], self.autocast) for name in names}
        return Session(opened, HostOps())

    def describe(self) -> dict[str, str]:
        """Return the library, its version and the device."""
        precision = "bf16 autocast" if self.autocast else "fp32"
        return {
            "name": self.name,
            "version": torch.__version__,
            "device": "cpu",
            "precision": precision,
        }


class TorchGraph(Graph):
    """One graph's module, run eagerly."""

    def __init__(self, graph: ExportedGraph, autocast: bool) -> None:
        super().__init__(graph.spec)
        self._module, self._autocast = graph.module, autocast

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Run the module without gradients."""
        # PyTorch has no read-only tensors, and warns of arrays as Pillow gives them.
        arrays = [np.require(inputs[t.name], requirements=("C", "W")) for t in self.spec.inputs]
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=self._autocast),
        ):
            outputs = self._module(*map(torch.from_numpy, arrays))
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return {
            spec.name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for spec, tensor in zip(self.spec.outputs, tensors, strict=True)
        }

    def _close(self) -> None:
        """Do nothing; there is nothing to free."""
