"""Run the graphs of a session for a stream: time every stage, and refuse NaN and infinity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import HostArray, HostCopy, Tensor, TensorOps
from rvos_deploy.runtime.backends.base import Session
from rvos_deploy.runtime.finite import MASK_LOGITS, require_finite
from rvos_deploy.runtime.fixed_shapes import run_rows

StageCallback = Callable[[str, float], None]
"""Called with the name of a stage and its seconds, for benchmarks."""


class SessionCalls:
    """Call the graphs of a session (see ``networks.steps.GraphCalls``)."""

    def __init__(self, session: Session, on_stage: StageCallback | None = None) -> None:
        self.session = session
        self._on_stage = on_stage

    @property
    def ops(self) -> TensorOps:
        """Return the operations on tensors between graphs."""
        return self.session.ops

    def spec(self, graph: str) -> GraphSpec:
        """Return a graph's contract."""
        return self.session.graphs[graph].spec

    def padded_size(self, graph: str, axis: str, size: int) -> int:
        """Return the size to pad an axis of a graph's inputs to (see ``Graph.padded_size``)."""
        return self.session.graphs[graph].padded_size(axis, size)

    @property
    def mask_graph(self) -> str:
        """Return the name of the graph that computes mask logits."""
        graphs = self.session.graphs.values()
        made = (g.spec.name for g in graphs for t in g.spec.outputs if t.name == MASK_LOGITS)
        return next(made, "")

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Resize and pad a frame uint8 [H,W,3]: network input uint8 [1,h,w,3]."""
        with self.stage("resize"):
            return self.ops.preprocess(frame, geometry)

    def run(self, graph: str, inputs: Mapping[str, Tensor], occasion: str) -> dict[str, Tensor]:
        """Run a graph, and check its outputs on the host.

        Raises BackendError: the back end failed, or an output holds NaN or infinity.
        """
        with self.stage(graph):
            outputs = run_rows(self.session, graph, inputs)
            require_finite(graph, outputs, occasion)
            return outputs

    def to_host(self, graph: str, outputs: Mapping[str, Tensor], occasion: str) -> _CheckedCopy:
        """Queue copies of a graph's outputs to the host."""
        copy = self.ops.to_host(list(outputs.values()))
        return _CheckedCopy(graph, tuple(outputs), copy, occasion)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = time.perf_counter()
        yield
        if self._on_stage is not None:
            self._on_stage(name, time.perf_counter() - started)


class _CheckedCopy:
    """Hold outputs of a graph that are being copied to the host."""

    def __init__(self, graph: str, names: tuple[str, ...], copy: HostCopy, occasion: str) -> None:
        self._graph, self._names, self._copy, self._occasion = graph, names, copy, occasion

    def get(self) -> dict[str, HostArray]:
        """Wait for the copies, check the arrays, and return them by name."""
        arrays = dict(zip(self._names, self._copy.arrays(), strict=True))
        require_finite(self._graph, arrays, self._occasion)
        return arrays
