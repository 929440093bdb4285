"""Run ONNX graphs operator by operator: the reference for graphs whose kernels an optimiser picks.

ONNX Runtime fuses the pairs of an int8 graph with the products between them into integer kernels.
Without its optimiser it rounds where the graph says, and computes every product in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rvos_deploy.bundle.onnx_file import OnnxContent, OnnxFile
from rvos_deploy.environment import usable_cores
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.onnxruntime.backend import (
    CPU,
    OnnxRuntimeBackend,
    OnnxRuntimeGraph,
    Place,
)


@dataclass(frozen=True)
class UnoptimizedBackend(OnnxRuntimeBackend):
    """ONNX Runtime on the CPU, without its optimiser."""

    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        return _UnoptimizedGraph(spec, file, Place(CPU), self.threads or usable_cores())


class _UnoptimizedGraph(OnnxRuntimeGraph):
    """A graph in a session that changes nothing."""

    def _session_options(self, ort: Any) -> Any:
        options = super()._session_options(ort)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options

    def _keeps_optimised(self, content: OnnxContent) -> bool:
        """Keep nothing: the cache holds optimised models."""
        return False
