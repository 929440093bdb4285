"""Run the PyTorch network on a GPU behind the runtime's interface, eager or compiled, to compare
with.

NOT RUN: it needs a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import nn

from rvos_deploy.benchmarks.torch_backend import TorchBackend
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.environment import usable_cores
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.export_graph import Graph as ExportedGraph
from rvos_deploy.networks.pan2024.graphs import graphs as graphs_of
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.runtime.backends.base import Graph, Session
from rvos_deploy.runtime.backends.host_ops import HostOps


class CudaTorchBackend(TorchBackend):
    """PyTorch on the first GPU, in the bundle's precision, with the weights it was exported from.

    Args:
        bundle: an opened bundle.
        checkpoint: what the bundle was exported from; None: the bundle's own weights.
        compiled: compile each graph's module with ``torch.compile``.
    """

    def __init__(self, bundle: Bundle, checkpoint: Path | None, *, compiled: bool) -> None:
        super().__init__(bundle, usable_cores(), checkpoint)
        self.name = "torch.compile" if compiled else "pytorch eager"
        self._compiled = compiled
        network: Any = self.graphs["backbone"].module
        set_precision(network.network, bundle.precision)
        network.network.to("cuda")
        # The contracts are made again, because they name the type that the network computes in.
        self.graphs: dict[str, ExportedGraph] = {
            graph.spec.name: graph for graph in graphs_of(network.network)
        }

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open the modules that these graphs were exported from."""
        names = bundle.graphs if graphs is None else graphs
        opened = {
            name: CudaTorchGraph(self.graphs[name], compiled=self._compiled) for name in names
        }
        return Session(opened, HostOps())

    def describe(self) -> dict[str, str]:
        """Return the library, its version and the device."""
        return {"name": self.name, "version": torch.__version__, "device": "cuda"}


@dataclass(frozen=True)
class OnDevice:
    """A tensor on the GPU, as the runtime's ``Tensor``."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its type, in NumPy's terms."""
        return np.dtype(str(self.tensor.dtype).removeprefix("torch."))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.tensor.nbytes

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.tensor.cpu().numpy()
        return array if dtype is None else array.astype(dtype, copy=False)


class CudaTorchGraph(Graph):
    """One graph's module on the GPU; its outputs stay there."""

    def __init__(self, graph: ExportedGraph, *, compiled: bool) -> None:
        super().__init__(graph.spec)
        self._module: Any = graph.module
        if compiled:
            # Shapes change: the memory grows offline, and sentences differ in length.
            self._module = torch.compile(graph.module)

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Queue the module without gradients; nothing waits here."""
        with torch.inference_mode():
            outputs = self._module(*(_on_device(inputs[t.name]) for t in self.spec.inputs))
        tensors = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return {
            spec.name: OnDevice(tensor)
            for spec, tensor in zip(self.spec.outputs, tensors, strict=True)
        }

    def _close(self) -> None:
        """Drop the module; the back end still holds its weights."""
        self._module = nn.Identity()


def _on_device(value: Tensor) -> torch.Tensor:
    if isinstance(value, OnDevice):
        return value.tensor
    return torch.from_numpy(np.ascontiguousarray(value)).to("cuda")
