"""Keep tensors on the GPU between graphs.

NOT RUN: it needs a GPU (see device.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rvos_deploy.graph_io.tensors import DType, HostArray
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.dlpack import CUDA, make_capsule
from rvos_deploy.runtime.backends.cuda.driver_calls import wait_for
from rvos_deploy.runtime.backends.cuda.kernels import Argument, pointer
from rvos_deploy.runtime.backends.cuda.memory import DeviceBuffer
from rvos_deploy.runtime.backends.cuda.readers import NO_WAIT, Export, stream_handle
from rvos_deploy.runtime.backends.cuda.staging import DeviceEvent


class Memory(Protocol):
    """Keeps a tensor's memory alive: a pooled buffer, a captured run's, or another library's."""

    @property
    def address(self) -> int:
        """The device address of the first byte."""


class DeviceTensor:
    """A contiguous tensor on a GPU.

    Other libraries on the GPU read it through DLPack (``torch.from_dlpack``) or the CUDA array
    interface (``cupy.asarray``), and NumPy through ``numpy.asarray``. The tensor lives as long as
    its segmenter.

    Args:
        device: the GPU.
        shape: its shape.
        dtype: any description of a NumPy type.
        memory: keeps the memory alive.
        ready: passes when the tensor is computed. Work queued on ``device.compute`` need not wait.
        foreign: the memory is another library's, which may reuse it once this tensor is gone.
    """

    def __init__(
        self,
        device: CudaDevice,
        shape: Sequence[int],
        dtype: DType,
        memory: Memory,
        ready: DeviceEvent,
        *,
        foreign: bool = False,
    ) -> None:
        self.device, self.shape, self.dtype = device, tuple(shape), np.dtype(dtype)
        self.foreign = foreign
        self._memory, self._ready = memory, ready

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """The device address of the first element. Raises BackendError: the device was closed."""
        return self._memory.address

    @property
    def ready(self) -> DeviceEvent:
        """The event that passes when the tensor is computed."""
        return self._ready

    def mark_written(self) -> None:
        """Make readers wait for the writes to this tensor that are queued on ``device.compute``
        now.
        """
        self._ready = self.device.event(self.device.compute)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        if isinstance(self._memory, DeviceBuffer):
            self._memory.block.unknown_readers = True
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            # The consumer makes its own work wait for this stream, so nothing waits here.
            "stream": int(self.device.compute.handle),
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule. Work that the consumer queues on its stream from now on waits for the
        tensor.

        The memory is used again only after the work that the consumer has queued on its stream when
        it releases the tensor (``readers.py``).

        Raises:
            BufferError: a copy is asked for, or another device.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(
                "a tensor on the GPU is exported without a copy; numpy.asarray copies it down"
            )
        device = self.device
        with device.lock, device.current():
            if stream != NO_WAIT:
                wait_for(device.bindings, stream_handle(stream), int(device.compute.handle))
            owner: object = self._memory
            if isinstance(self._memory, DeviceBuffer):
                owner = Export(device.bindings, self._memory, stream)
            return make_capsule(self.address, self.shape, self.dtype, owner, CUDA, device.ordinal)

    def __array__(self, dtype: DType | None = None, copy: bool | None = None) -> HostArray:
        if copy is False:
            raise ValueError("a tensor on the GPU cannot become a NumPy array without a copy")
        (array,) = DeviceCopy([self]).arrays()
        return array if dtype is None else array.astype(dtype, copy=False)

    def reshape(self, *shape: int) -> DeviceTensor:
        """Return the same memory in another shape of as many elements."""
        assert math.prod(shape) == math.prod(self.shape)
        return DeviceTensor(
            self.device, shape, self.dtype, self._memory, self._ready, foreign=self.foreign
        )

    def __repr__(self) -> str:
        return f"DeviceTensor(shape={self.shape}, dtype={self.dtype}, on={self.device.name})"


class DeviceCopy:
    """A queued copy of tensors to the host. Creating it queues the copy; :meth:`arrays` waits."""

    def __init__(self, tensors: Sequence[DeviceTensor]) -> None:
        """Queue the copy. ``tensors``: at least one, all of one device."""
        self._tensors, self._device = list(tensors), tensors[0].device
        device = self._device
        with device.lock, device.current():
            self._pinned = [device.acquire_pinned(tensor.nbytes) for tensor in tensors]
            for tensor, pinned in zip(tensors, self._pinned, strict=True):
                tensor.ready.wait(device.download)
                part = pinned[: tensor.nbytes]
                device.driver.memcpy_dtoh_async(part, tensor.address, device.download)
            self._done = device.event(device.download)

    def arrays(self) -> list[HostArray]:
        """Wait, and return the arrays in order, each in memory of its own. Call this once."""
        with self._device.current():
            self._done.synchronize()
        arrays = [
            pinned[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape).copy()
            for tensor, pinned in zip(self._tensors, self._pinned, strict=True)
        ]
        for pinned in self._pinned:
            self._device.release_pinned(pinned)
        self._pinned, self._tensors = [], []
        return arrays


def run_kernel(
    device: CudaDevice,
    kernel: str,
    threads: int,
    arguments: Sequence[Argument],
    shape: Sequence[int],
    dtype: DType,
) -> DeviceTensor:
    """Queue a kernel whose last argument is its output, and return the output.

    Args:
        device: the GPU.
        kernel: one of ``kernels.KERNELS``.
        threads: how many threads are needed; 0 queues nothing.
        arguments: the kernel's arguments but for the output.
        shape: of the output.
        dtype: of the output.

    Raises:
        BackendError: the kernels are not available (says why), or the GPU is out of memory.
    """
    kernels = device.kernels()
    with device.lock, device.current():
        output = device.allocate(max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        if threads:
            stream = int(device.compute.handle)
            kernels.launch(kernel, threads, [*arguments, pointer(output.address)], stream)
        return DeviceTensor(device, shape, dtype, output, device.event(device.compute))


def to_device(device: CudaDevice, array: HostArray) -> DeviceTensor:
    """Copy a host array to the GPU and wait for the copy; meant for arrays that stay there.

    Raises:
        BackendError: the GPU is out of memory.
    """
    with device.lock, device.current():
        buffer = device.allocate(max(1, array.nbytes))
        pinned = device.acquire_pinned(max(1, array.nbytes))
        # Queued work may still read what the recycled buffer held before.
        device.event(device.compute).wait(device.upload)
        part = pinned[: array.nbytes]
        np.copyto(part.view(array.dtype).reshape(array.shape), array)
        device.driver.memcpy_htod_async(buffer.address, part, device.upload)
        arrived = device.event(device.upload)
        arrived.wait(device.compute)
    with device.current():
        arrived.synchronize()
    device.release_pinned(pinned)
    return DeviceTensor(device, array.shape, array.dtype, buffer, arrived)
