"""One TensorRT engine as a graph: plain runs, captured ones, and their memory.

NOT RUN: it needs a GPU (see backend.py).
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rvos_deploy.bundle.engine_sidecar import Profile, supports
from rvos_deploy.errors import RvosError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, DeviceBuffer, Staging
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor
from rvos_deploy.runtime.backends.tensorrt.cuda_graphs import (
    CapturedRuns,
    CaptureError,
    RunKey,
    capture,
    free_graph,
    launch,
)
from rvos_deploy.runtime.backends.tensorrt.execution import Execution, check_interface

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Engine:
    """An engine to load.

    Args:
        spec: the contract of its graph.
        profiles: those it was built with.
        load: checks and deserialises it; its argument is the GPU's compute capability ("8.9").
        refuse: the error of sizes that no profile supports.
    """

    spec: GraphSpec
    profiles: Sequence[Profile]
    load: Callable[[str], trt.ICudaEngine]
    refuse: Callable[[Mapping[str, int]], RvosError]

    def profile(self, axes: Mapping[str, int]) -> int:
        """Return the index of the first profile that supports these sizes.

        Raises the error that ``refuse`` gives: none does.
        """
        for index, profile in enumerate(self.profiles):
            if supports(profile, axes):
                return index
        raise self.refuse(axes)


class _Lease:
    """Memory of a captured run's outputs, for as long as somebody has one of them."""

    def __init__(self, run: _CapturedRun, buffer: DeviceBuffer) -> None:
        self._run, self._buffer = run, buffer

    @property
    def address(self) -> int:
        return self._buffer.address


class _CapturedRun:
    """An execution context, the buffers it is bound to, and what it put on the stream."""

    def __init__(
        self,
        driver: Any,
        execution: Execution,
        staged: Mapping[str, Staging],
        outputs: Mapping[str, DeviceBuffer],
        graph: Any,
    ) -> None:
        self.staged, self.outputs, self.graph = staged, outputs, graph
        self._driver, self._execution = driver, execution
        self._leases: list[weakref.ref[_Lease]] = []

    @property
    def busy(self) -> bool:
        """Whether somebody still holds the outputs of its last replay."""
        return any(lease() is not None for lease in self._leases)

    def lease(self) -> dict[str, _Lease]:
        """Memory for the outputs of this replay."""
        leases = {name: _Lease(self, buffer) for name, buffer in self.outputs.items()}
        self._leases = [weakref.ref(lease) for lease in leases.values()]
        return leases

    def close(self) -> None:
        """Free the graph, then the context, once nothing of it runs; outputs stay where leased."""
        self._execution.device.compute.synchronize()
        free_graph(self._driver, self.graph)
        self._execution.close()
        for staging in self.staged.values():
            self._execution.device.unstage(staging)


class TensorRtGraph(Graph):
    """One engine. Accepts host arrays and :class:`DeviceTensor`, gives :class:`DeviceTensor`."""

    def __init__(
        self, trt: Any, device: CudaDevice, engine: Engine, *, cuda_graphs: bool = True
    ) -> None:
        """Load the engine.

        Raises:
            EngineError, BackendError: as ``engine.load``, or the engine is another graph's.
        """
        super().__init__(engine.spec)
        self._trt, self._device, self._engine = trt, device, engine
        self._loaded: Any = None
        self._workspace: DeviceBuffer | None = None
        self._plain: Execution | None = None
        self._captured: CapturedRuns[_CapturedRun] = CapturedRuns(
            engine.spec.name, enabled=cuda_graphs
        )
        try:
            with self._held_device():
                self._load()
        except BaseException:
            self.close()
            raise

    @property
    def why_not_captured(self) -> str | None:
        """Why this graph runs without CUDA graphs; None where nothing stands against them."""
        return self._captured.reason

    def supports(self, axes: Mapping[str, int]) -> bool:
        """Tell whether a profile of the engine supports these sizes."""
        return any(supports(profile, axes) for profile in self._engine.profiles)

    def layer_report(self) -> str:
        """Return the inspector's JSON for the best sizes of the first profile.

        Raises BackendError: the device's memory is short, or TensorRT refuses the sizes.
        """
        with self._held_device():
            self._require_open()
            execution = self._make_execution()
            try:
                best = {name: sizes[1] for name, sizes in self._engine.profiles[0].items()}
                return execution.layer_report(best)
            finally:
                execution.close()

    @contextmanager
    def _held_device(self) -> Iterator[None]:
        """Hold the device for a block.

        The frames of an error's traceback are cleared, because they would keep TensorRT's objects
        beyond the CUDA context that those live in.
        """
        try:
            with self._device.lock, self._device.current():
                yield
        except BaseException as error:
            traced: BaseException | None = error
            while traced is not None:
                traceback.clear_frames(traced.__traceback__)
                traced = traced.__cause__
            raise

    def _load(self) -> None:
        device = self._device
        engine = self._loaded = self._engine.load(device.compute_capability)
        check_interface(self._trt, engine, self.spec)
        # One workspace for all of the engine's contexts: they run one after the other.
        self._workspace = device.allocate(max(1, engine.device_memory_size_v2))
        self._plain = self._make_execution()

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Queue one run; its outputs may be passed on at once.

        Raises:
            InputError: an input lies on another GPU.
            BackendError: no profile supports these sizes, or TensorRT or CUDA refused.
        """
        profile, device = self._engine.profile(axes), self._device
        with self._held_device():
            # Another thread may have closed the graph meanwhile.
            self._require_open()
            on_device = {
                name: value.address
                for name, value in inputs.items()
                if isinstance(value, DeviceTensor)
            }
            key = RunKey.of(axes, on_device)
            run = self._captured.find(key)
            if run is not None:
                outputs = self._replay(run, axes, inputs)
            elif self._captured.wants(key):
                outputs = self._run_and_capture(key, profile, axes, inputs)
            else:
                outputs = self._run_plainly(profile, axes, inputs)
            for value in inputs.values():
                if isinstance(value, DeviceTensor) and value.borrowed:
                    device.keep(value)
            return outputs

    def _close(self) -> None:
        """Free CUDA graphs, contexts, engine and memory, in this order."""
        device = self._device
        with device.lock, device.current():
            device.compute.synchronize()
            self._captured.clear()
            if self._plain is not None:
                self._plain.close()
            self._plain = None
            self._loaded = None
            self._workspace = None

    def _make_execution(self) -> Execution:
        assert self._workspace is not None
        return Execution(self._trt, self._loaded, self._device, self._workspace, self.spec)

    def _run_plainly(
        self,
        profile: int,
        axes: Mapping[str, int],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Queue a run on the context that all runs share that are not captured."""
        assert self._plain is not None
        device = self._device
        staged: dict[str, Staging] = {}
        try:
            outputs = _enqueue(device, self._plain, profile, axes, inputs, staged)
        finally:
            for staging in staged.values():
                device.unstage(staging)
        return self._tensors(axes, outputs)

    def _run_and_capture(
        self,
        key: RunKey,
        profile: int,
        axes: Mapping[str, int],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Queue a run on a context of its own, and capture the same again for the next time."""
        device, execution = self._device, self._make_execution()
        staged: dict[str, Staging] = {}
        graph = None
        try:
            # The warm-up, and this call's result.
            outputs = _enqueue(device, execution, profile, axes, inputs, staged)
            stream = int(device.compute.handle)
            try:
                graph = capture(device.bindings, stream, execution.try_enqueue)
            except CaptureError as refused:
                self._captured.give_up(str(refused))
        finally:
            if graph is None:
                device.compute.synchronize()
                execution.close()
                for staging in staged.values():
                    device.unstage(staging)
        if graph is None:
            return self._tensors(axes, outputs)
        run = _CapturedRun(device.bindings, execution, staged, outputs, graph)
        self._captured.add(key, run)
        return self._tensors(axes, run.lease())

    def _replay(
        self,
        run: _CapturedRun,
        axes: Mapping[str, int],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        device = self._device
        for name, staging in run.staged.items():
            staging.put(np.asarray(inputs[name]))
        launch(device.bindings, run.graph, int(device.compute.handle))
        for staging in run.staged.values():
            staging.consumed()
        return self._tensors(axes, run.lease())

    def _tensors(
        self,
        axes: Mapping[str, int],
        memory: Mapping[str, DeviceBuffer] | Mapping[str, _Lease],
    ) -> dict[str, Tensor]:
        device = self._device
        ready = device.event(device.compute)
        return {
            tensor.name: DeviceTensor(
                device, tensor.sizes(axes), tensor.dtype, memory[tensor.name], ready
            )
            for tensor in self.spec.outputs
        }


def _enqueue(
    device: CudaDevice,
    execution: Execution,
    profile: int,
    axes: Mapping[str, int],
    inputs: Mapping[str, Tensor],
    staged: dict[str, Staging],
) -> dict[str, DeviceBuffer]:
    """Queue the upload of what is on the host, and one run; room of the outputs.

    ``staged`` is filled as it goes, so that the caller can give back what an error leaves there.
    """
    addresses: dict[str, int] = {}
    for name, value in inputs.items():
        if isinstance(value, DeviceTensor):
            addresses[name] = value.address
            continue
        staging = staged[name] = device.staging(value.nbytes)
        staging.put(np.asarray(value))
        addresses[name] = staging.address
    outputs = execution.bind(profile, axes, addresses)
    execution.enqueue()
    for staging in staged.values():
        staging.consumed()
    return outputs
