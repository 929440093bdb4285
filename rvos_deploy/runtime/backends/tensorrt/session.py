"""Engines on one GPU as a session: its graphs share the device, its streams and its memory."""

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
    """Graphs on one GPU, which is released when the session is closed."""

    def __init__(self, graphs: dict[str, Graph], device: CudaDevice) -> None:
        """Raises BackendError: CUDA failed."""
        super().__init__(graphs, CudaOps(device))
        self._device: CudaDevice | None = device

    def close(self) -> None:
        """Free the graphs, then the hold on the GPU."""
        try:
            super().close()
        finally:
            device, self._device = self._device, None
            if device is not None:
                device.release()


def open_engines(
    trt: Any, libraries: CudaLibraries, engines: Sequence[Engine], *, cuda_graphs: bool = True
) -> TensorRtSession:
    """Load engines on the first GPU.

    Args:
        trt: the imported ``tensorrt`` or ``tensorrt_rtx``.
        libraries: CUDA's.
        engines: what to load; each is loaded by its own ``load``, which checks it first.
        cuda_graphs: capture runs that come again.

    Raises:
        BackendError, EngineError: an engine cannot be loaded here.
    """
    device = acquire_device(libraries)
    with ExitStack() as stack:
        stack.callback(device.release)
        graphs: dict[str, Graph] = {}
        for engine in engines:
            graph = TensorRtGraph(trt, device, engine, cuda_graphs=cuda_graphs)
            graphs[engine.spec.name] = stack.enter_context(graph)
        session = TensorRtSession(graphs, device)
        stack.pop_all()
        return session
