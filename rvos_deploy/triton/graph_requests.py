"""Run graphs that are models of the same Triton server, by requests of BLS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import BackendError, one_line
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Backend, Graph, Session
from rvos_deploy.runtime.backends.host_ops import HostOps


class GraphRequests(Backend):
    """A back end whose graphs are models of the server that runs this code."""

    name = "triton"

    def __init__(self, pb_utils: Any, prefix: str) -> None:
        """``pb_utils``: Triton's module; ``prefix``: of the models' names."""
        self._pb_utils, self._prefix = pb_utils, prefix

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Return the graphs; nothing is loaded here."""
        names = bundle.graphs if graphs is None else graphs
        made = {
            name: RequestedGraph(bundle.graphs[name], self._pb_utils, f"{self._prefix}_{name}")
            for name in names
        }
        return Session(made, HostOps())

    def describe(self) -> dict[str, str]:
        """Return the name."""
        return {"name": self.name}


class RequestedGraph(Graph):
    """One graph, which another model of the server runs."""

    def __init__(self, spec: GraphSpec, pb_utils: Any, model: str) -> None:
        """``model``: its name in the repository."""
        super().__init__(spec)
        self._pb_utils, self._model = pb_utils, model

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        pb_utils = self._pb_utils
        request = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=[tensor.name for tensor in self.spec.outputs],
            inputs=[
                pb_utils.Tensor(tensor.name, np.ascontiguousarray(np.asarray(inputs[tensor.name])))
                for tensor in self.spec.inputs
            ],
            # Otherwise a model on a GPU leaves its outputs there.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            reason = one_line(response.error().message())
            raise BackendError(f"Triton's model {self._model} failed: {reason}")
        return {tensor.name: self._output(response, tensor.name) for tensor in self.spec.outputs}

    def _output(self, response: Any, name: str) -> Tensor:
        tensor = self._pb_utils.get_output_tensor_by_name(response, name)
        if tensor is None:
            raise BackendError(
                f"Triton's model {self._model} has no output {name}; run export-triton again"
            )
        array: Tensor = tensor.as_numpy()
        return array

    def _close(self) -> None:
        pass
