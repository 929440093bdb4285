"""Run a plan plainly, to compare it: every call allocates, copies, runs and waits.

The stream's runner is another one; this one trades speed for having nothing that could be wrong.
NOT RUN: it needs a GPU. Its names are checked against the real bindings of TensorRT 11 and of
``cuda.bindings``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rvos_deploy.bundle.engine_sidecar import Profile, takes
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.runtime.backends.base import HostArray, Runner, Value
from rvos_deploy.runtime.backends.cuda.libraries import call
from rvos_deploy.runtime.backends.tensorrt.engine_loading import deserialize

if TYPE_CHECKING:
    from pathlib import Path

    import tensorrt as trt

    from rvos_deploy.bundle.onnx_file import OnnxFile


class PlanRunner(Runner):
    """One plan that was just built, on the first GPU."""

    def __init__(
        self,
        trt: Any,
        logger: trt.ILogger,
        spec: GraphSpec,
        plan: Path,
        weights: OnnxFile | None,
        profiles: Sequence[Profile],
        *,
        allow_host_code: bool = False,
    ) -> None:
        """``weights``: the ONNX, for a stripped plan. ``profiles``: those it was built with."""
        super().__init__(spec)
        self._trt, self._logger, self._plan, self._weights = trt, logger, plan, weights
        self._profiles, self._allow_host_code = profiles, allow_host_code
        self._primary: Any = None
        self._engine: Any = None
        self._context: Any = None

    def activate_impl(self) -> None:
        """Deserialise on the device's primary context, which the process's other users share."""
        _call("cuInit", 0)
        self._primary = _call("cuDevicePrimaryCtxRetain", _call("cuDeviceGet", 0))
        _call("cuCtxSetCurrent", self._primary)
        self._engine = deserialize(
            self._trt,
            self._logger,
            self._plan.read_bytes(),
            self._weights,
            allow_host_code=self._allow_host_code,
        )
        self._context = _context(self._engine)

    def infer_impl(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Host arrays in, host arrays out."""
        _call("cuCtxSetCurrent", self._primary)
        axes = self.spec.bind(inputs)
        context: trt.IExecutionContext = self._context
        outputs = {
            tensor.name: np.empty(tensor.sizes(axes), tensor.dtype) for tensor in self.spec.outputs
        }
        with _stream() as stream, _device_memory([*inputs.values(), *outputs.values()]) as memory:
            if not context.set_optimization_profile_async(self._profile(axes), stream):
                raise BackendError(f"TensorRT refuses the profile of {self.spec.name} for {axes}")
            addresses = dict(zip([*inputs, *outputs], memory, strict=True))
            for name, array in inputs.items():
                host = np.ascontiguousarray(array)
                context.set_input_shape(name, host.shape)
                _call("cuMemcpyHtoD", addresses[name], host.ctypes.data, host.nbytes)
            # A copy from pageable memory may return before it has arrived, and the stream does not
            # wait for the default one.
            _call("cuCtxSynchronize")
            for name, address in addresses.items():
                context.set_tensor_address(name, address)
            if not context.execute_async_v3(stream):
                raise BackendError(f"TensorRT failed in {self.spec.name} at {axes}")
            _call("cuStreamSynchronize", stream)
            for name, array in outputs.items():
                _call("cuMemcpyDtoH", array.ctypes.data, addresses[name], array.nbytes)
        return dict(outputs)

    def layer_report(self) -> str:
        """The inspector's JSON; shapes are set first, since types of dynamic layers need them."""
        engine: trt.ICudaEngine = self._engine
        context: trt.IExecutionContext = self._context
        for tensor in self.spec.inputs:
            best = {name: sizes[1] for name, sizes in self._profiles[0].items()}
            context.set_input_shape(tensor.name, tensor.sizes(best))
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def deactivate_impl(self) -> None:
        """Free the execution context, then the engine, then this hold on the device's context."""
        _call("cuCtxSetCurrent", self._primary)
        self._context = None
        self._engine = None
        self._primary = None
        _call("cuDevicePrimaryCtxRelease", _call("cuDeviceGet", 0))

    def _profile(self, axes: Mapping[str, int]) -> int:
        for index, profile in enumerate(self._profiles):
            if takes(profile, axes):
                return index
        raise InputError(f"{self.spec.name}: no profile takes {axes}; widen one with --profile")


def _context(engine: trt.ICudaEngine) -> trt.IExecutionContext:
    context = engine.create_execution_context()
    if context is None:
        raise BackendError(
            "TensorRT cannot make an execution context: GPU memory is short; use smaller maxima "
            "in --profile"
        )
    return context


@contextmanager
def _stream() -> Iterator[int]:
    driver = _driver()
    stream = _call("cuStreamCreate", int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    try:
        yield int(stream)
    finally:
        _call("cuStreamDestroy", stream)


@contextmanager
def _device_memory(arrays: Sequence[HostArray]) -> Iterator[list[int]]:
    """Room on the device for each array; addresses in order."""
    taken: list[int] = []
    try:
        for array in arrays:
            taken.append(int(_call("cuMemAlloc", max(1, array.nbytes))))
        yield taken
    finally:
        for address in taken:
            _call("cuMemFree", address)


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise BackendError(
            "cuda-bindings is not installed, the engine cannot be compared; "
            "pip install 'rvos-deploy[tensorrt]'"
        ) from None
    return driver


def _call(name: str, *arguments: Any) -> Any:
    return call(_driver(), name, *arguments)
