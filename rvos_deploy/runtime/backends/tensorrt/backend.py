"""TensorRT engines of a bundle, on the GPU that ``build-engine`` proved them on.

What a graph gives stays on the device, and the next graph takes it from there. All graphs run on
one stream, one after the other; host arrays go up on a second one, through page-locked buffers.

NOT RUN: it needs a GPU. Tested against recording stand-ins of ``tensorrt`` (its arithmetic done by
ONNX Runtime), ``pycuda.driver`` and ``cuda.bindings.driver``; every TensorRT name against the real
bindings of TensorRT 11.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.bundle.engine_sidecar import EngineSidecar, read_sidecar, takes
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.runtime.backends.base import Backend, Fetching, HostArray, Runner, Value
from rvos_deploy.runtime.backends.cuda import pieces as device_pieces
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, DeviceBuffer, Staging, hold_device
from rvos_deploy.runtime.backends.cuda.foreign_arrays import borrow, is_device_array
from rvos_deploy.runtime.backends.cuda.frames import FrameFitter
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries, import_tensorrt
from rvos_deploy.runtime.backends.cuda.masks import MaskDisplay
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, Fetch, send
from rvos_deploy.runtime.backends.tensorrt.cuda_graphs import (
    CapturedRuns,
    CaptureError,
    RunKey,
    capture,
    free_graph,
    launch,
)
from rvos_deploy.runtime.backends.tensorrt.engine_checks import profile_for
from rvos_deploy.runtime.backends.tensorrt.engine_loading import load_engine
from rvos_deploy.runtime.backends.tensorrt.execution import Execution, check_interface

if TYPE_CHECKING:
    import tensorrt as trt

TARGET = "tensorrt"


class TensorRtBackend(Backend):
    """The engines in a bundle's ``engines/tensorrt``, on the first GPU that CUDA shows.

    Args:
        cuda_graphs: capture runs that come again; where that fails, a warning says why.
        allow_host_code: load version-compatible engines, which hold host code; for those you trust.
    """

    name = "tensorrt"

    def __init__(self, *, cuda_graphs: bool = True, allow_host_code: bool = False) -> None:
        """Raises BackendError when TensorRT, a CUDA package, the driver or the GPU is missing."""
        self._trt, self._libraries = import_tensorrt()
        self._cuda_graphs, self._allow_host_code = cuda_graphs, allow_host_code
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._bundles: dict[Path, Bundle] = {}
        device = hold_device(self._libraries)
        self._gpu = f"{device.name} (compute capability {device.compute_capability})"
        device.let_go()

    def runner(self, spec: GraphSpec, file: OnnxFile) -> TensorRtRunner:
        """A runner, not yet active, of the engine built from this ONNX file.

        Raises:
            BundleError: the file's bundle is damaged.
            EngineError: there is no engine; says the command that builds it.
        """
        folder = file.path.parent
        if folder not in self._bundles:
            # Of the ONNX an engine needs no more than the hash in the manifest, but for weights.
            self._bundles[folder] = open_bundle(folder, check_files=False)
        bundle = self._bundles[folder]
        sidecar = read_sidecar(bundle.path, TARGET, spec.name)
        return TensorRtRunner(
            self._trt,
            self._logger,
            self._libraries,
            spec,
            bundle,
            sidecar,
            cuda_graphs=self._cuda_graphs,
            allow_host_code=self._allow_host_code,
        )

    def describe(self) -> dict[str, str]:
        """Library, version, device, and the GPU's name."""
        version = str(self._trt.__version__)
        return {"name": self.name, "version": version, "device": "cuda", "gpu": self._gpu}


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


class TensorRtRunner(Runner):
    """One engine. Takes host arrays and :class:`DeviceTensor`, gives :class:`DeviceTensor`."""

    def __init__(
        self,
        trt: Any,
        logger: trt.ILogger,
        libraries: CudaLibraries,
        spec: GraphSpec,
        bundle: Bundle,
        sidecar: EngineSidecar,
        *,
        cuda_graphs: bool = True,
        allow_host_code: bool = False,
    ) -> None:
        super().__init__(spec)
        self._trt, self._logger, self._libraries = trt, logger, libraries
        self._bundle, self._sidecar = bundle, sidecar
        self._cuda_graphs, self._allow_host_code = cuda_graphs, allow_host_code
        self._device: CudaDevice | None = None
        self._engine: Any = None
        self._workspace: DeviceBuffer | None = None
        self._plain: Execution | None = None
        self._captured: CapturedRuns[_CapturedRun] = CapturedRuns(spec.name, enabled=cuda_graphs)
        self._display: MaskDisplay | None = None
        self._fitter: FrameFitter | None = None

    @property
    def why_not_captured(self) -> str | None:
        """Why this graph runs without CUDA graphs; None where nothing stands against them."""
        return self._captured.reason

    def activate_impl(self) -> None:
        """Check the engine, then load it; nothing is deserialised before every check passed."""
        device = self._device = hold_device(self._libraries)
        try:
            with device.lock, device.current():
                self._load(device)
        except BaseException as error:
            # The traceback's frames would keep the engine beyond the context that it lives in.
            traceback.clear_frames(error.__traceback__)
            self.deactivate_impl()
            raise

    def _load(self, device: CudaDevice) -> None:
        engine: trt.ICudaEngine = load_engine(
            self._trt,
            self._logger,
            self._bundle,
            self._sidecar,
            device.compute_capability,
            allow_host_code=self._allow_host_code,
        )
        self._engine = engine
        check_interface(self._trt, engine, self.spec)
        # One workspace for all of the engine's contexts: they run one after the other.
        self._workspace = device.allocate(max(1, engine.device_memory_size_v2))
        self._plain = self._make_execution()
        self._captured = CapturedRuns(self.spec.name, enabled=self._cuda_graphs)
        if device.has_kernels():
            self._display, self._fitter = MaskDisplay(device), FrameFitter(device)

    def infer_impl(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Queue one run; its outputs may be passed on at once, and waited for by ``to_host``.

        Raises:
            InputError: an input lies on another GPU.
            EngineError: no profile of the engine takes these sizes; says the command.
            BackendError: TensorRT or CUDA refused.
        """
        axes = self.spec.bind(inputs)
        profile = profile_for(self._bundle.path, self._sidecar, axes)
        device = self._require_device()
        with device.lock, device.current():
            on_device = {
                name: value.address
                for name, value in inputs.items()
                if isinstance(value, DeviceTensor)
            }
            key = RunKey.of(axes, on_device)
            run = self._captured.find(key)
            if run is not None:
                outputs = self._replay(device, run, axes, inputs)
            elif self._captured.wants(key):
                outputs = self._run_and_capture(device, key, profile, axes, inputs)
            else:
                outputs = self._run(device, profile, axes, inputs)
            for value in inputs.values():
                if isinstance(value, DeviceTensor) and value.borrowed:
                    device.keep(value)
            return outputs

    def deactivate_impl(self) -> None:
        """Free graphs, contexts, engine and memory, in this order, then the hold on the GPU."""
        device, self._device = self._device, None
        if device is None:
            return
        try:
            with device.lock, device.current():
                device.compute.synchronize()
                self._captured.clear()
                if self._plain is not None:
                    self._plain.close()
                self._plain = None
                self._display = self._fitter = None
                self._engine = None
                self._workspace = None
        finally:
            device.let_go()

    def fit(self, frame: Value, geometry: FrameGeometry) -> Value:
        """Resized and padded on the device, when it is there; on the host without kernels."""
        if self._fitter is None or not isinstance(frame, DeviceTensor):
            return super().fit(frame, geometry)
        return self._fitter.fit(frame, geometry)

    def gather(self, value: Value, index: NDArray[np.integer]) -> Value:
        """On the device, of what is there; on the host where there are no kernels."""
        alike = index.ndim == 1 and np.array_equal(index, np.arange(value.shape[0]))
        if alike or self._display is None or not isinstance(value, DeviceTensor):
            return super().gather(value, index)
        return device_pieces.gather(value, index)

    def stack(self, rows: Sequence[Sequence[Value | None]]) -> Value:
        """On the device, of what is there; on the host where there are no kernels."""
        there = all(isinstance(x, DeviceTensor) for row in rows for x in row if x is not None)
        if self._display is None or not there:
            return super().stack(rows)
        return device_pieces.stack(rows)

    def show(self, logits: Value, geometry: FrameGeometry) -> Fetching:
        """Masks resized, thresholded and packed on the device; by the host where it cannot."""
        if self._display is None or not isinstance(logits, DeviceTensor):
            return super().show(logits, geometry)
        return self._display.fetch(logits, geometry)

    def finite_maps(self, logits: Value) -> Fetching:
        """Looked at on the device, a byte a row comes down; by the host where it cannot."""
        if self._display is None or not isinstance(logits, DeviceTensor):
            return super().finite_maps(logits)
        return self._display.finite(logits)

    def require_device_masks(self) -> None:
        """Raises BackendError where our kernels could not be compiled or loaded; says why."""
        self._require_device().kernels()

    def show_on_device(self, logits: Value, geometry: FrameGeometry) -> DeviceTensor:
        """Masks bool [E,H,W] on the device, queued."""
        self.require_device_masks()
        assert self._display is not None
        there = logits if isinstance(logits, DeviceTensor) else send(self._require_device(), logits)
        return self._display.show(there, geometry)

    def takes(self, axes: Mapping[str, int]) -> bool:
        """Whether a profile of the engine takes these sizes."""
        return any(takes(profile, axes) for profile in self._sidecar.profiles)

    def take(self, value: Any) -> Value:
        """An array on this GPU as it is; one on the host as a NumPy array."""
        if is_device_array(value):
            return borrow(self._require_device(), value)
        return super().take(value)

    def to_host(self, value: Value) -> HostArray:
        """A NumPy array of the value; waits for it."""
        return np.asarray(value)

    def fetch(self, values: Sequence[Value]) -> Fetching:
        """Queue the downloads, each as soon as its value is there; one wait for all of them."""
        tensors = [value for value in values if isinstance(value, DeviceTensor)]
        if not tensors or len(tensors) < len(values):
            return super().fetch(values)
        return Fetch(tensors)

    def _require_device(self) -> CudaDevice:
        if self._device is None:
            raise BackendError(f"runner of {self.spec.name} is not active; call activate() first")
        return self._device

    def _make_execution(self) -> Execution:
        assert self._device is not None
        assert self._workspace is not None
        return Execution(self._trt, self._engine, self._device, self._workspace, self.spec)

    def _run(
        self,
        device: CudaDevice,
        profile: int,
        axes: Mapping[str, int],
        inputs: Mapping[str, Value],
    ) -> dict[str, Value]:
        """Queue a run on the context that all runs share that are not captured."""
        assert self._plain is not None
        staged: dict[str, Staging] = {}
        try:
            outputs = _enqueue(device, self._plain, profile, axes, inputs, staged)
        finally:
            for staging in staged.values():
                device.unstage(staging)
        return self._tensors(device, axes, outputs)

    def _run_and_capture(
        self,
        device: CudaDevice,
        key: RunKey,
        profile: int,
        axes: Mapping[str, int],
        inputs: Mapping[str, Value],
    ) -> dict[str, Value]:
        """Queue a run on a context of its own, and capture the same again for the next time."""
        execution = self._make_execution()
        staged: dict[str, Staging] = {}
        graph = None
        try:
            # The warm-up, and this call's result.
            outputs = _enqueue(device, execution, profile, axes, inputs, staged)
            stream = int(device.compute.handle)
            try:
                graph = capture(self._libraries.driver, stream, execution.try_enqueue)
            except CaptureError as refused:
                self._captured.give_up(str(refused))
        finally:
            if graph is None:
                device.compute.synchronize()
                execution.close()
                for staging in staged.values():
                    device.unstage(staging)
        if graph is None:
            return self._tensors(device, axes, outputs)
        run = _CapturedRun(self._libraries.driver, execution, staged, outputs, graph)
        self._captured.add(key, run)
        return self._tensors(device, axes, run.lease())

    def _replay(
        self,
        device: CudaDevice,
        run: _CapturedRun,
        axes: Mapping[str, int],
        inputs: Mapping[str, Value],
    ) -> dict[str, Value]:
        for name, staging in run.staged.items():
            staging.put(inputs[name])
        launch(self._libraries.driver, run.graph, int(device.compute.handle))
        for staging in run.staged.values():
            staging.consumed()
        return self._tensors(device, axes, run.lease())

    def _tensors(
        self,
        device: CudaDevice,
        axes: Mapping[str, int],
        memory: Mapping[str, DeviceBuffer] | Mapping[str, _Lease],
    ) -> dict[str, Value]:
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
    inputs: Mapping[str, Value],
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
        staging.put(value)
        addresses[name] = staging.address
    outputs = execution.bind(profile, axes, addresses)
    execution.enqueue()
    for staging in staged.values():
        staging.consumed()
    return outputs
