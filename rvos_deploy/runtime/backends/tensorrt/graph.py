"""Run one TensorRT engine as a graph: plain runs, captured runs, and their memory.

NOT RUN: it needs a GPU (see backend.py).
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rvos_deploy.bundle.engine_sidecar import Profile, supports
from rvos_deploy.errors import RvosError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.memory import DeviceBuffer
from rvos_deploy.runtime.backends.cuda.staging import Staging
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor
from rvos_deploy.runtime.backends.tensorrt.cuda_graphs import (
    CapturedRuns,
    CaptureError,
    RunKey,
    capture,
    free_graph,
    launch,
)
from rvos_deploy.runtime.backends.tensorrt.engine_checks import EngineMachine
from rvos_deploy.runtime.backends.tensorrt.execution import Execution, check_interface

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Engine:
    """An engine to load.

    Args:
        spec: the contract of its graph.
        profiles: the profiles that it was built with.
        load: checks and deserialises it on this machine.
        refuse: makes the error of sizes that no profile supports.
    """

    spec: GraphSpec
    profiles: Sequence[Profile]
    load: Callable[[EngineMachine], trt.ICudaEngine]
    refuse: Callable[[Mapping[str, int]], RvosError]

    def profile(self, axes: Mapping[str, int]) -> int:
        """Return the index of the first profile that supports these sizes.

        Raises the error that ``refuse`` makes: no profile supports them.
        """
        for index, profile in enumerate(self.profiles):
            if supports(profile, axes):
                return index
        raise self.refuse(axes)


class _Lease:
    """The memory of a captured run's output. The run is busy for as long as a lease lives."""

    def __init__(self, run: _CapturedRun, buffer: DeviceBuffer) -> None:
        self._run, self._buffer = run, buffer

    @property
    def address(self) -> int:
        return self._buffer.address


class _CapturedRun:
    """An execution context, the buffers that it is bound to, and the CUDA graph of its work."""

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
        """Whether anything still references the outputs of the last replay."""
        return any(lease() is not None for lease in self._leases)

    def lease(self) -> dict[str, _Lease]:
        """Return the memory of the outputs of this replay."""
        leases = {name: _Lease(self, buffer) for name, buffer in self.outputs.items()}
        self._leases = [weakref.ref(lease) for lease in leases.values()]
        return leases

    def close(self) -> None:
        """Wait, then free the CUDA graph, the context and the upload buffers; leased outputs stay.

        All of them are freed, also where one step fails.
        """
        device = self._execution.device
        with ExitStack() as stack:
            for staging in self.staged.values():
                stack.callback(device.release_staging, staging)
            stack.callback(self._execution.close)
            stack.callback(free_graph, self._driver, self.graph)
            device.compute.synchronize()


class TensorRtGraph(Graph):
    """One engine. Inputs are host arrays or :class:`DeviceTensor`; outputs are
    :class:`DeviceTensor`.
    """

    def __init__(
        self, trt: Any, device: CudaDevice, engine: Engine, *, cuda_graphs: bool = True
    ) -> None:
        """Load the engine.

        Args:
            trt: the imported library.
            device: the GPU.
            engine: what to load.
            cuda_graphs: capture repeated runs as CUDA graphs.

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
    def disabled_reason(self) -> str | None:
        """The reason why this graph runs without CUDA graphs; None where it uses them."""
        return self._captured.reason

    def supports(self, axes: Mapping[str, int]) -> bool:
        """Tell whether a profile of the engine supports these sizes."""
        return any(supports(profile, axes) for profile in self._engine.profiles)

    def layer_report(self) -> str:
        """Return the inspector's JSON for the best sizes of the first profile.

        Raises BackendError: the GPU is out of memory, or TensorRT refuses the sizes.
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

        The frames of an error's traceback are cleared within the block, because TensorRT's objects
        in them must be freed while the CUDA context is current.
        """
        with self._device.lock, self._device.current():
            try:
                yield
            except BaseException as error:
                cause: BaseException | None = error
                while cause is not None:
                    traceback.clear_frames(cause.__traceback__)
                    cause = cause.__cause__
                raise

    def _load(self) -> None:
        device = self._device
        machine = EngineMachine(self._trt.__version__, device.compute_capability, device.name)
        engine = self._loaded = self._engine.load(machine)
        check_interface(self._trt, engine, self.spec)
        # All contexts of the engine share one workspace, because they run one after the other.
        self._workspace = device.allocate(max(1, engine.device_memory_size_v2))
        self._plain = self._make_execution()

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Queue one run; the next graph may use its outputs at once.

        Raises:
            InputError: an input lies on another GPU.
            BackendError: no profile supports these sizes, or TensorRT or CUDA refused.
        """
        profile, device = self._engine.profile(axes), self._device
        with self._held_device():
            # Another thread may have closed the graph since the first check.
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
            elif self._captured.should_capture(key):
                outputs = self._run_and_capture(key, profile, axes, inputs)
            else:
                outputs = self._run_plainly(profile, axes, inputs)
            for value in inputs.values():
                if isinstance(value, DeviceTensor) and value.foreign:
                    device.keep_alive(value)
            return outputs

    def _close(self) -> None:
        """Wait, then free CUDA graphs, contexts, engine and workspace, even if a step fails."""
        with self._held_device(), ExitStack() as stack:
            # The stack runs from its end, and runs every step whatever the others raise.
            stack.callback(self._drop_engine)
            stack.callback(self._captured.clear)
            self._device.compute.synchronize()

    def _drop_engine(self) -> None:
        """Drop the context, then the engine, then the workspace."""
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
        """Queue a run on the context that all uncaptured runs share."""
        assert self._plain is not None
        device = self._device
        staged: dict[str, Staging] = {}
        try:
            outputs = _enqueue(device, self._plain, profile, axes, inputs, staged)
        finally:
            for staging in staged.values():
                device.release_staging(staging)
        return self._tensors(axes, outputs)

    def _run_and_capture(
        self,
        key: RunKey,
        profile: int,
        axes: Mapping[str, int],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Queue a run on a context of its own, and capture the same work for the next time."""
        device, execution = self._device, self._make_execution()
        staged: dict[str, Staging] = {}
        graph = None
        try:
            # This run is the warm-up of the capture, and gives this call's result.
            outputs = _enqueue(device, execution, profile, axes, inputs, staged)
            stream = int(device.compute.handle)
            device.compute.synchronize()
            try:
                graph = capture(device.bindings, stream, execution.try_enqueue)
            except CaptureError as refused:
                self._captured.disable(str(refused))
        finally:
            if graph is None:
                with ExitStack() as stack:
                    for staging in staged.values():
                        stack.callback(device.release_staging, staging)
                    stack.callback(execution.close)
                    device.compute.synchronize()
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
            staging.upload(np.asarray(inputs[name]))
        launch(device.bindings, run.graph, int(device.compute.handle))
        for staging in run.staged.values():
            staging.mark_read()
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
    """Queue the upload of host inputs and one run, and return the buffers of the outputs.

    ``staged`` is filled input by input, so that the caller can release the upload buffers after an
    error.
    """
    addresses: dict[str, int] = {}
    for name, value in inputs.items():
        if isinstance(value, DeviceTensor):
            addresses[name] = value.address
            continue
        staging = staged[name] = device.acquire_staging(value.nbytes)
        staging.upload(np.asarray(value))
        addresses[name] = staging.address
    outputs = execution.bind(profile, axes, addresses)
    execution.enqueue()
    for staging in staged.values():
        staging.mark_read()
    return outputs
