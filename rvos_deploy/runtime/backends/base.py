"""Define the contract of a back end: it opens a bundle as a session of graphs and tensor
operations.

``TensorOps``, the other half of the contract, is in ``graph_io/tensors.py``, because networks use
it too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.closeable import Closeable
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.graph_io.tensors import Tensor, TensorOps
from rvos_deploy.worker_threads import worker_threads


class Graph(Closeable):
    """A graph that is ready to run. A back end defines ``_run`` and ``_close``."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self._closed = False

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph once.

        Args:
            inputs: tensors by name, with the shapes and types of the graph's contract. NumPy arrays
                are accepted too.

        Returns:
            Tensors by name, where the back end keeps them.

        Raises:
            InputError: an input breaks the contract.
            BackendError: the graph was closed, the library failed, or an output breaks the
                contract.
        """
        self._require_open()
        axes = self.spec.bind(inputs)
        outputs = self._run(inputs, axes)
        self.spec.check_outputs(outputs, axes)
        return outputs

    def supports(self, axes: Mapping[str, int]) -> bool:
        """Tell whether this graph can run at these sizes, which its contract allows."""
        return True

    def padded_size(self, axis: str, size: int) -> int:
        """Return the size to pad an axis to: the contract's least size at least.

        A back end that runs fastest at few different sizes rounds up.
        """
        return max(size, self.spec.minimum_size(axis))

    def close(self) -> None:
        """Free the graph; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._close()

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError(f"the graph {self.spec.name} was closed; load the bundle again")

    @abstractmethod
    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Run the graph on inputs that fit its contract; ``axes`` are their sizes by name."""

    @abstractmethod
    def _close(self) -> None:
        """Free the graph."""


class Session(Closeable):
    """Graphs by name and the operations on their tensors. Threads may share a session."""

    def __init__(self, graphs: Mapping[str, Graph], ops: TensorOps) -> None:
        self.graphs, self.ops = graphs, ops
        self.closed = False

    def close(self) -> None:
        """Free all graphs, also where freeing one of them fails; safe to call twice."""
        self.closed = True
        with ExitStack() as stack:
            for graph in self.graphs.values():
                stack.callback(graph.close)


class Backend(ABC):
    """An inference library on a device."""

    name: str

    @abstractmethod
    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open graphs of a bundle.

        Args:
            bundle: an opened bundle.
            graphs: names of the graphs; None opens all of them.

        Raises:
            BackendError: the library cannot load a graph, or the device cannot be used.
            BundleError: a file of the bundle is missing or was changed.
        """

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Return the library, its version and the device, for records of results."""

    def with_precision_hint(self, hint: PrecisionHint) -> Backend:
        """Return this back end with some operators of float32 bundles in lower precision.

        The contracts of the graphs that it opens state their precision and tolerance.

        Raises:
            BackendError: this back end, or this machine, cannot do so.
        """
        raise BackendError(
            f"{self.name} cannot follow --precision-hint {hint}; add --backend openvino, or leave "
            "the hint out"
        )


class OnnxBackend(Backend):
    """A library that runs the ONNX files of a bundle, each on its own."""

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        """Open graphs of a bundle (see ``Backend.open``)."""
        names = bundle.graphs if graphs is None else graphs
        return self.open_files((bundle.graphs[name], bundle.graph_file(name)) for name in names)

    def open_files(self, files: Iterable[tuple[GraphSpec, OnnxFile]]) -> Session:
        """Open ONNX files with their contracts; an export has no bundle yet.

        Raises:
            BackendError, BundleError: as ``open``.
        """
        graphs = {graph.spec.name: graph for graph in _open_together(self._graph, list(files))}
        return Session(graphs, self._ops())

    @abstractmethod
    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        """Open one file, in any thread. Raises BackendError, BundleError: as ``open``."""

    @abstractmethod
    def _ops(self) -> TensorOps:
        """Return the operations on the graphs' tensors."""


def _open_together(
    open_graph: Callable[[GraphSpec, OnnxFile], Graph], files: Sequence[tuple[GraphSpec, OnnxFile]]
) -> list[Graph]:
    """Open files in one thread per core; after an error none stays open.

    Hashing a file and preparing its graph occupy one core each, and not the interpreter.
    """
    with worker_threads(usable_cores()) as executor:
        opening = [executor.submit(open_graph, spec, file) for spec, file in files]
        try:
            return [graph.result() for graph in opening]
        except BaseException:
            for graph in opening:
                graph.add_done_callback(_close_opened)
            raise


def _close_opened(opening: Future[Graph]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
