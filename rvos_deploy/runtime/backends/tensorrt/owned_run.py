"""A run at fixed sizes that owns its execution context, its inputs and its outputs.

A CUDA graph is bound to every address, and frames, memories and pending masks come and go. So a
replay reads and writes its own buffers alone, whose addresses nobody else ever gets. Inputs are
copied in, and outputs are copied out into buffers of the pool, which belong to the holder of the
tensor. Both are copies on the GPU, in the order of the compute stream.

NOT RUN: it needs a GPU (see backend.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from rvos_deploy.graph_io.graph_spec import TensorSpec
from rvos_deploy.graph_io.tensors import HostArray, Tensor
from rvos_deploy.runtime.backends.cuda.memory import DeviceBuffer
from rvos_deploy.runtime.backends.cuda.staging import Staging
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor
from rvos_deploy.runtime.backends.tensorrt.cuda_graphs import capture, free_graph, launch
from rvos_deploy.runtime.backends.tensorrt.execution import Execution

Axes = Mapping[str, int]


class OwnedRun:
    """An execution context at fixed sizes, its buffers, and later the CUDA graph of its work."""

    def __init__(self, execution: Execution, profile: int, axes: Axes) -> None:
        """Allocate the buffers, and bind the context to them. The run owns the context.

        Args:
            execution: a context that nothing else uses.
            profile: the index of a profile that supports the sizes.
            axes: the sizes, padded.

        Raises:
            BackendError: the GPU is out of memory, or TensorRT refuses the sizes.
        """
        self._execution, self._device = execution, execution.device
        self._graph: Any = None
        self._inputs: dict[str, Staging] = {}
        self._outputs: dict[str, DeviceBuffer] = {}
        self._axes = axes
        try:
            for tensor in execution.spec.inputs:
                nbytes = size_in_bytes(tensor, axes)
                self._inputs[tensor.name] = self._device.acquire_staging(nbytes)
            addresses = {name: staging.address for name, staging in self._inputs.items()}
            self._outputs = execution.bind(profile, axes, addresses)
        except BaseException:
            self.close()
            raise

    def run(self, axes: Axes, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Queue one run, by the CUDA graph where there is one, and return its outputs.

        Args:
            axes: the sizes of the inputs, of which only the expressions may be fewer than the
                run's.
            inputs: arrays on the host, or tensors of this device.

        Raises:
            BackendError: TensorRT or CUDA refuses, or the GPU is out of memory.
        """
        for tensor in self._execution.spec.inputs:
            fill(self._inputs[tensor.name], inputs[tensor.name], tensor, self._axes)
        if self._graph is None:
            self._execution.enqueue()
        else:
            stream = int(self._device.compute.handle)
            launch(self._device.bindings, self._graph, stream)
        for staging in self._inputs.values():
            staging.mark_read()
        return as_tensors(self._execution, axes, self._copies(axes))

    def capture(self) -> None:
        """Capture the work of the last run, after it has finished.

        Raises CaptureError: CUDA or TensorRT refuses, and the run stays as it was.
        """
        device, execution = self._device, self._execution
        device.compute.synchronize()
        stream = int(device.compute.handle)
        self._graph = capture(device.bindings, stream, execution.try_enqueue)

    def close(self) -> None:
        """Wait, then free the CUDA graph, the context and the buffers; returned outputs stay.

        All of them are freed, also where one step fails.
        """
        graph, self._graph = self._graph, None
        with ExitStack() as stack:
            for staging in self._inputs.values():
                stack.callback(self._device.release_staging, staging)
            self._inputs.clear()
            self._outputs.clear()
            stack.callback(self._execution.close)
            if graph is not None:
                stack.callback(free_graph, self._device.bindings, graph)
            self._device.compute.synchronize()

    def _copies(self, axes: Axes) -> dict[str, DeviceBuffer]:
        """Queue copies of the outputs, without padding, into buffers of the pool."""
        device = self._device
        copies: dict[str, DeviceBuffer] = {}
        for tensor in self._execution.spec.outputs:
            nbytes = size_in_bytes(tensor, axes)
            copy = copies[tensor.name] = device.allocate(nbytes)
            source = self._outputs[tensor.name].address
            device.driver.memcpy_dtod_async(copy.address, source, nbytes, device.compute)
        return copies


def as_tensors(
    execution: Execution, axes: Axes, memory: Mapping[str, DeviceBuffer]
) -> dict[str, Tensor]:
    """Return buffers as the outputs of the work that is queued on the compute stream now.

    Args:
        execution: of the graph.
        axes: the sizes without padding, which lies behind them in the buffers.
        memory: the buffers by output name.
    """
    device = execution.device
    ready = device.event(device.compute)
    return {
        tensor.name: DeviceTensor(
            device, tensor.sizes(axes), tensor.dtype, memory[tensor.name], ready
        )
        for tensor in execution.spec.outputs
    }


def fill(staging: Staging, value: Tensor, tensor: TensorSpec, axes: Axes) -> None:
    """Queue the copy of an input; its last row is repeated up to the padded size.

    So padding holds numbers that the graph is made for. Rows are expressions, which do not depend
    on each other.

    Args:
        staging: large enough for the padded input.
        value: an array on the host, or a tensor of this device.
        tensor: its contract.
        axes: the padded sizes.
    """
    shape = tensor.sizes(axes)
    missing = shape[0] - value.shape[0] if shape else 0
    if not isinstance(value, DeviceTensor):
        staging.upload(_padded(np.asarray(value), missing))
        return
    staging.copy(_pieces(value, missing))


def _padded(array: HostArray, missing: int) -> HostArray:
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _pieces(value: DeviceTensor, missing: int) -> Iterator[tuple[int, int]]:
    yield value.address, value.nbytes
    if missing:
        row = value.nbytes // value.shape[0]
        for _ in range(missing):
            yield value.address + value.nbytes - row, row


def size_in_bytes(tensor: TensorSpec, axes: Axes) -> int:
    """Return the bytes of a tensor at these sizes."""
    return math.prod(tensor.sizes(axes)) * np.dtype(tensor.dtype).itemsize
