"""Run the PyTorch network on a GPU behind the runtime's interface, eager or compiled, to compare
with.

Nothing waits for the GPU but the download of the masks and of the scores: deformable attention has
numbers as level shapes, and tensors stay on the GPU between the graphs.

NOT RUN on a GPU. The tests run it on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rvos_deploy.benchmarks.torch_backend import TorchBackend
from rvos_deploy.benchmarks.torch_ops import TorchOps, TorchTensor
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.environment import usable_cores
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.export_graph import Graph as ExportedGraph
from rvos_deploy.networks.pan2024.graphs import graphs as graphs_of
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.runtime.backends.base import Graph, Session

COMPILE_MODE = "reduce-overhead"
"""torch.compile then replays CUDA graphs of its own, as TensorRT's back end does."""


class DeviceTorchBackend(TorchBackend):
    """PyTorch on a device, in the bundle's precision, with the weights it was exported from.

    Args:
        bundle: an opened bundle.
        checkpoint: what the bundle was exported from; None: the bundle's own weights.
        compiled: compile each graph's module with ``torch.compile``.
        device: PyTorch's name of it.
    """

    def __init__(
        self, bundle: Bundle, checkpoint: Path | None, *, compiled: bool, device: str = "cuda"
    ) -> None:
        super().__init__(bundle, usable_cores(), checkpoint)
        self.name = "torch.compile" if compiled else "pytorch eager"
        self._compiled, self._device = compiled, device
        network: Any = self.graphs["backbone"].module
        set_precision(network.network, bundle.precision)
        network.network.to(device)
        # The contracts are made again, because they name the type that the network computes in.
        self.graphs: dict[str, ExportedGraph] = {
            graph.spec.name: graph for graph in graphs_of(network.network)
        }

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open the modules that these graphs were exported from."""
        ops = TorchOps(self._device)
        names = bundle.graphs if graphs is None else graphs
        opened = {
            name: DeviceTorchGraph(self.graphs[name], ops, compiled=self._compiled)
            for name in names
        }
        return Session(opened, ops)

    def describe(self) -> dict[str, str]:
        """Return the library, its version, the device, and what kept CUDA graphs away."""
        described = {"name": self.name, "version": torch.__version__, "device": self._device}
        if self._compiled:
            described |= {"mode": COMPILE_MODE, "runs without CUDA graphs": str(_skipped())}
        return described


def _skipped() -> int:
    """Return how many compiled parts PyTorch runs without a CUDA graph, in this process."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


class DeviceTorchGraph(Graph):
    """One graph's module on a device; its outputs stay there."""

    def __init__(self, graph: ExportedGraph, ops: TorchOps, *, compiled: bool) -> None:
        super().__init__(graph.spec)
        self._ops, self._compiled = ops, compiled
        self._module: Any = graph.module
        if compiled:
            # Shapes change: the memory grows offline, and sentences differ in length.
            self._module = torch.compile(graph.module, mode=COMPILE_MODE)

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Queue the module without gradients; nothing waits here."""
        with torch.inference_mode():
            outputs = self._module(*(self._ops.tensor(inputs[t.name]) for t in self.spec.inputs))
            tensors = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            if self._compiled:
                # The next replay writes over these outputs, which a stream keeps longer.
                tensors = [tensor.clone() for tensor in tensors]
        return {
            spec.name: TorchTensor(tensor)
            for spec, tensor in zip(self.spec.outputs, tensors, strict=True)
        }

    def _close(self) -> None:
        """Drop the module; the back end still holds its weights."""
        self._module = nn.Identity()
