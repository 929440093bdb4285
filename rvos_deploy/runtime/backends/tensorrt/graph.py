"""Run one TensorRT engine as a graph: plain runs, captured runs, and their memory.

NOT RUN: it needs a GPU (see backend.py).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.engine_sidecar import Profile, supports
from rvos_deploy.errors import RvosError
from rvos_deploy.graph_io.graph_spec import ROWS, GraphSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.foreign_arrays import from_dlpack
from rvos_deploy.runtime.backends.cuda.memory import DeviceBuffer
from rvos_deploy.runtime.backends.cuda.staging import Staging
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor
from rvos_deploy.runtime.backends.tensorrt.buckets import padded_size
from rvos_deploy.runtime.backends.tensorrt.cuda_graphs import CapturedRuns, CaptureError
from rvos_deploy.runtime.backends.tensorrt.engine_checks import EngineMachine
from rvos_deploy.runtime.backends.tensorrt.execution import Execution, check_interface
from rvos_deploy.runtime.backends.tensorrt.owned_run import (
    OwnedRun,
    as_tensors,
    fill,
    size_in_bytes,
)

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
        self._captured: CapturedRuns[OwnedRun] = CapturedRuns(engine.spec.name, enabled=cuda_graphs)
        self._rounds_rows = all(
            ROWS not in tensor.axes or tensor.shape[0] == ROWS
            for tensor in (*self.spec.inputs, *self.spec.outputs)
        )
        try:
            with self._held_device():
                machine = EngineMachine(trt.__version__, device.compute_capability, device.name)
                self._loaded = engine.load(machine)
                check_interface(trt, self._loaded, self.spec)
        except BaseException:
            self.close()
            raise

    @property
    def workspace_bytes(self) -> int:
        """The GPU memory that a run needs for its intermediate tensors."""
        return max(1, int(self._loaded.device_memory_size_v2))

    def start(self, workspace: DeviceBuffer) -> None:
        """Make the graph ready to run.

        Args:
            workspace: at least ``workspace_bytes``. Graphs whose runs are queued on one stream may
                share it, because nothing in it outlives a run.

        Raises:
            BackendError: the GPU is out of memory.
        """
        with self._held_device():
            self._workspace = workspace
            self._plain = self._make_execution()

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

    def padded_size(self, axis: str, size: int) -> int:
        """Return a size that many sizes are padded to, so that the engine sees few."""
        least = super().padded_size(axis, size)
        return padded_size(self._engine.profiles, axis, least)

    def _padded(self, axes: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes that the engine runs at: expressions are padded here."""
        padded = dict(axes)
        if ROWS in padded and self._rounds_rows:
            padded[ROWS] = self.padded_size(ROWS, padded[ROWS])
        return padded

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        """Queue one run; the next graph may use its outputs at once.

        Raises:
            InputError: an input lies on another GPU.
            BackendError: no profile supports these sizes, or TensorRT or CUDA refused.
        """
        device, padded = self._device, self._padded(axes)
        # The padded sizes lie within the same profiles.
        profile = self._engine.profile(axes)
        inputs = {
            name: from_dlpack(device, value) if isinstance(value, DeviceTensor) else value
            for name, value in inputs.items()
        }
        with self._held_device():
            # Another thread may have closed the graph since the first check.
            self._require_open()
            run = self._captured.find(padded)
            if run is not None:
                outputs = run.run(axes, inputs)
            elif self._captured.should_capture(padded):
                outputs = self._run_and_capture(profile, padded, axes, inputs)
            else:
                outputs = self._run_plainly(profile, padded, axes, inputs)
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
        padded: Mapping[str, int],
        axes: Mapping[str, int],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Queue a run on the context that all uncaptured runs share; its outputs are new buffers.

        Tensors on the GPU that need no padding are read where they are.
        """
        assert self._plain is not None
        device = self._device
        staged: dict[str, Staging] = {}
        addresses: dict[str, int] = {}
        try:
            for tensor in self.spec.inputs:
                name, value = tensor.name, inputs[tensor.name]
                if isinstance(value, DeviceTensor) and value.shape == tensor.sizes(padded):
                    addresses[name] = value.address
                    continue
                staging = staged[name] = device.acquire_staging(size_in_bytes(tensor, padded))
                fill(staging, value, tensor, padded)
                addresses[name] = staging.address
            outputs = self._plain.bind(profile, padded, addresses)
            self._plain.enqueue()
            for staging in staged.values():
                staging.mark_read()
        finally:
            for staging in staged.values():
                device.release_staging(staging)
        return as_tensors(self._plain, axes, outputs)

    def _run_and_capture(
        self,
        profile: int,
        padded: Mapping[str, int],
        axes: Mapping[str, int],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Queue a run with buffers of its own, and capture the same work for the next time."""
        run = OwnedRun(self._make_execution(), profile, padded)
        captured = False
        try:
            # This run is the warm-up of the capture, and gives this call's result.
            outputs = run.run(axes, inputs)
            run.capture()
            captured = True
        except CaptureError as refused:
            self._captured.disable(str(refused))
        finally:
            if not captured:
                run.close()
        if captured:
            self._captured.add(padded, run)
        return outputs
