"""Run one TensorRT execution context: set sizes and addresses, and queue the work on the stream.

NOT RUN: it needs a GPU (see backend.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.memory import DeviceBuffer

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx


class Execution:
    """An execution context on the device's compute stream. Contexts of one engine share a
    workspace.
    """

    def __init__(
        self,
        trt: Any,
        engine: trt.ICudaEngine,
        device: CudaDevice,
        workspace: DeviceBuffer,
        spec: GraphSpec,
    ) -> None:
        """Create the context.

        Args:
            trt: the imported library.
            engine: the deserialised engine.
            device: the GPU.
            workspace: of at least ``engine.device_memory_size_v2`` bytes.
            spec: the contract of the graph.

        Raises:
            BackendError: the GPU is out of memory.
        """
        self.device, self.spec, self._workspace = device, spec, workspace
        self._trt, self._engine = trt, engine
        made = _make_context(trt, engine)
        if made is None:
            raise BackendError(
                f"TensorRT cannot make an execution context of {spec.name}: GPU memory is short; "
                "build with smaller maxima in --profile, or end other programs on the GPU"
            )
        context: trt.IExecutionContext = made
        context.set_device_memory(workspace.address, engine.device_memory_size_v2)
        self._context = context
        self._profile: int | None = None

    def bind(
        self, profile: int, axes: Mapping[str, int], addresses: Mapping[str, int]
    ) -> dict[str, DeviceBuffer]:
        """Set sizes and addresses, and return new buffers for the outputs.

        Args:
            profile: the index of a profile that supports the sizes.
            axes: sizes by name.
            addresses: device addresses of all inputs by name.

        Raises:
            BackendError: TensorRT refuses a shape, or an output's shape is not the contract's.
        """
        context: trt.IExecutionContext = self._context
        stream = int(self.device.compute.handle)
        if profile != self._profile:
            if not context.set_optimization_profile_async(profile, stream):
                raise self._refused(f"profile {profile}", axes)
            self._profile = profile
        self._set_shapes(axes)
        for tensor in self.spec.inputs:
            context.set_tensor_address(tensor.name, addresses[tensor.name])
        outputs: dict[str, DeviceBuffer] = {}
        for tensor in self.spec.outputs:
            found, needed = tuple(context.get_tensor_shape(tensor.name)), tensor.sizes(axes)
            if found != needed:
                raise BackendError(
                    f"the engine of {self.spec.name} would give {tensor.name} of shape "
                    f"{list(found)}, its contract says {list(needed)}; build the engine again with "
                    "rvos-deploy build-engine"
                )
            outputs[tensor.name] = self.device.allocate(
                math.prod(needed) * np.dtype(tensor.dtype).itemsize
            )
            context.set_tensor_address(tensor.name, outputs[tensor.name].address)
        return outputs

    def try_enqueue(self) -> bool:
        """Queue the work; return False where TensorRT refuses."""
        context: trt.IExecutionContext = self._context
        return bool(context.execute_async_v3(int(self.device.compute.handle)))

    def enqueue(self) -> None:
        """Queue the work. Raises BackendError: TensorRT refuses."""
        if not self.try_enqueue():
            raise BackendError(
                f"TensorRT failed in {self.spec.name} (its own message is above); check the GPU "
                "with nvidia-smi, and build the engine again if it persists"
            )

    def layer_report(self, axes: Mapping[str, int]) -> str:
        """Return the engine inspector's JSON; the types of dynamic layers depend on the sizes.

        Profile 0 must support the sizes. Call this before any run.

        Raises BackendError: TensorRT refuses a shape.
        """
        self._set_shapes(axes)
        engine: trt.ICudaEngine = self._engine
        inspector = engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Drop the context; none of its work may be queued or running."""
        self._context = self._engine = None

    def _set_shapes(self, axes: Mapping[str, int]) -> None:
        context: trt.IExecutionContext = self._context
        for tensor in self.spec.inputs:
            shape = tensor.sizes(axes)
            if not context.set_input_shape(tensor.name, shape):
                raise self._refused(f"{tensor.name} of shape {list(shape)}", axes)

    def _refused(self, what: str, axes: Mapping[str, int]) -> BackendError:
        sizes = ", ".join(f"{name}={size}" for name, size in axes.items())
        return BackendError(
            f"TensorRT refuses {what} in {self.spec.name} at {sizes}; build the engine again with "
            "rvos-deploy build-engine"
        )


def _make_context(trt: Any, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
    """Return a context without a workspace of its own; None where GPU memory is short."""
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return _make_rtx_context(trt, engine)
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)


def _make_rtx_context(rtx: Any, engine: rtx.ICudaEngine) -> rtx.IExecutionContext | None:
    """Return a context that compiles kernels for new sizes before it runs.

    By default TensorRT-RTX compiles them in the background: a run's numbers would depend on how far
    that is, and a captured run would keep the slow kernels.
    """
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        rtx.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    config.dynamic_shapes_kernel_specialization_strategy = (
        rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return engine.create_execution_context(config)


def check_interface(trt: Any, engine: trt.ICudaEngine, spec: GraphSpec) -> None:
    """Check that an engine's inputs and outputs are those of the contract: name, kind, type, on the
    GPU.

    Raises:
        BackendError: they differ, so the engine is another graph's.
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
