"""One TensorRT execution context: sizes and addresses in, work on the stream out.

NOT RUN: it needs a GPU (see tensorrt.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, DeviceBuffer

if TYPE_CHECKING:
    import tensorrt as trt


class Execution:
    """An execution context on the device's compute stream, in a workspace that it shares."""

    def __init__(
        self,
        trt: Any,
        engine: trt.ICudaEngine,
        device: CudaDevice,
        workspace: DeviceBuffer,
        spec: GraphSpec,
    ) -> None:
        """``workspace``: of at least ``engine.device_memory_size_v2`` bytes.

        Raises:
            BackendError: the device's memory is short.
        """
        self.device, self._spec, self._workspace = device, spec, workspace
        self._trt, self._engine = trt, engine
        context = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise BackendError(
                f"TensorRT cannot make an execution context of {spec.name}: GPU memory is short; "
                "build with smaller maxima in --profile, or end other programs on the GPU"
            )
        context.set_device_memory(workspace.address, engine.device_memory_size_v2)
        self._context = context
        self._profile: int | None = None

    def bind(
        self, profile: int, axes: Mapping[str, int], addresses: Mapping[str, int]
    ) -> dict[str, DeviceBuffer]:
        """Set sizes and addresses; returns room for the outputs, set too.

        Args:
            profile: index of one that takes the sizes.
            axes: sizes by name.
            addresses: of every input.

        Raises:
            BackendError: TensorRT refuses a shape, or would give another than the contract's.
        """
        context: trt.IExecutionContext = self._context
        stream = int(self.device.compute.handle)
        if profile != self._profile:
            if not context.set_optimization_profile_async(profile, stream):
                raise self._refused(f"profile {profile}", axes)
            self._profile = profile
        self._set_shapes(axes)
        for tensor in self._spec.inputs:
            context.set_tensor_address(tensor.name, addresses[tensor.name])
        room: dict[str, DeviceBuffer] = {}
        for tensor in self._spec.outputs:
            found, needed = tuple(context.get_tensor_shape(tensor.name)), tensor.sizes(axes)
            if found != needed:
                raise BackendError(
                    f"the engine of {self._spec.name} would give {tensor.name} of shape "
                    f"{list(found)}, its contract says {list(needed)}; build the engine again with "
                    "rvos-deploy build-engine"
                )
            room[tensor.name] = self.device.allocate(
                math.prod(needed) * np.dtype(tensor.dtype).itemsize
            )
            context.set_tensor_address(tensor.name, room[tensor.name].address)
        return room

    def try_enqueue(self) -> bool:
        """Put the work on the stream; False when TensorRT refuses."""
        context: trt.IExecutionContext = self._context
        return bool(context.execute_async_v3(int(self.device.compute.handle)))

    def enqueue(self) -> None:
        """Put the work on the stream. Raises BackendError when TensorRT refuses."""
        if not self.try_enqueue():
            raise BackendError(
                f"TensorRT failed in {self._spec.name} (its own message is above); check the GPU "
                "with nvidia-smi, and build the engine again if it persists"
            )

    def layer_report(self, axes: Mapping[str, int]) -> str:
        """Return the engine inspector's JSON; types of dynamic layers depend on the sizes.

        Profile 0 must support them. Call this before any run.

        Raises BackendError: TensorRT refuses a shape.
        """
        self._set_shapes(axes)
        engine: trt.ICudaEngine = self._engine
        inspector = engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Drop the context; nothing of it may run any more."""
        self._context = self._engine = None

    def _set_shapes(self, axes: Mapping[str, int]) -> None:
        context: trt.IExecutionContext = self._context
        for tensor in self._spec.inputs:
            shape = tensor.sizes(axes)
            if not context.set_input_shape(tensor.name, shape):
                raise self._refused(f"{tensor.name} of shape {list(shape)}", axes)

    def _refused(self, what: str, axes: Mapping[str, int]) -> BackendError:
        sizes = ", ".join(f"{name}={size}" for name, size in axes.items())
        return BackendError(
            f"TensorRT refuses {what} in {self._spec.name} at {sizes}; build the engine again with "
            "rvos-deploy build-engine"
        )


def check_interface(trt: Any, engine: trt.ICudaEngine, spec: GraphSpec) -> None:
    """The engine's inputs and outputs are the contract's, by name, kind and type, on the device.

    Raises:
        BackendError: it is the engine of something else.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        (
            name,
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            _numpy_name(trt, engine.get_tensor_dtype(name)),
            engine.get_tensor_location(name) == trt.TensorLocation.DEVICE,
        )
        for name in names
    }
    needed = {(tensor.name, True, tensor.dtype, True) for tensor in spec.inputs}
    needed |= {(tensor.name, False, tensor.dtype, True) for tensor in spec.outputs}
    if found != needed:
        wrong = ", ".join(sorted({entry[0] for entry in found ^ needed}))
        raise BackendError(
            f"the engine of {spec.name} does not fit the graph's contract ({wrong}); build it "
            "again with rvos-deploy build-engine"
        )


def _numpy_name(trt: Any, dtype: trt.DataType) -> str:
    names = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.INT32: "int32",
        trt.DataType.INT64: "int64",
        trt.DataType.BOOL: "bool",
        trt.DataType.UINT8: "uint8",
    }
    return names.get(dtype, str(dtype))
