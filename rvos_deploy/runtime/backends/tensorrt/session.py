"""Open engines as a session: the graphs share one GPU, its streams and its memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from rvos_deploy.runtime.backends.base import Graph, Session
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries
from rvos_deploy.runtime.backends.cuda.ops import CudaOps
from rvos_deploy.runtime.backends.tensorrt.graph import Engine, TensorRtGraph


class TensorRtSession(Session):
    """Graphs on one GPU. Closing the session releases the GPU."""

    def __init__(self, graphs: dict[str, Graph], device: CudaDevice) -> None:
        """Raises BackendError: CUDA failed."""
        super().__init__(graphs, CudaOps(device))
        self._device: CudaDevice | None = device

    def close(self) -> None:
        """Free the graphs, then release the GPU."""
        try:
            super().close()
        finally:
            device, self._device = self._device, None
            if device is not None:
                device.release()


def open_engines(
    trt: Any,
    libraries: CudaLibraries,
    engines: Sequence[Engine],
    ordinal: int = 0,
    *,
    cuda_graphs: bool = True,
) -> TensorRtSession:
    """Load engines on one GPU.

    Args:
        trt: the imported ``tensorrt`` or ``tensorrt_rtx``.
        libraries: the CUDA modules.
        engines: what to load; the ``load`` of each one checks it first.
        ordinal: the number of the GPU among those that CUDA shows.
        cuda_graphs: capture repeated runs as CUDA graphs.

    Raises:
        BackendError, EngineError: an engine cannot be loaded here.
    """
    device = acquire_device(libraries, ordinal)
    with ExitStack() as stack:
        stack.callback(device.release)
        graphs: dict[str, Graph] = {}
        loaded: list[TensorRtGraph] = []
        for engine in engines:
            graph = TensorRtGraph(trt, device, engine, cuda_graphs=cuda_graphs)
            graphs[engine.spec.name] = stack.enter_context(graph)
            loaded.append(graph)
        if loaded:
            # One run follows another on the compute stream, so the largest workspace serves all.
            workspace = device.allocate(max(graph.workspace_bytes for graph in loaded))
            for graph in loaded:
                graph.start(workspace)
        session = TensorRtSession(graphs, device)
        stack.pop_all()
        return session
