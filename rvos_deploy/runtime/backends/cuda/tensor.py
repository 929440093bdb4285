"""A tensor on the GPU, between graphs: what a runner gives and the next one takes.

NOT RUN: it needs a GPU (see cuda_device.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.runtime.backends.cuda.device import CudaDevice, DeviceEvent
from rvos_deploy.runtime.backends.cuda.dlpack import CUDA, make_capsule
from rvos_deploy.runtime.backends.cuda.kernels import Argument, pointer
from rvos_deploy.runtime.backends.cuda.libraries import LEGACY_STREAM, wait_for

_NO_WAIT = -1
"""DLPack's number for a reader who sees to the order himself."""


class Memory(Protocol):
    """What keeps a tensor's memory: a buffer of ours, a captured run's, or another library's."""

    @property
    def address(self) -> int:
        """Where it begins."""


class DeviceTensor:
    """A contiguous tensor on a GPU.

    Other libraries on the GPU take it through DLPack (``torch.from_dlpack``) or the CUDA array
    interface (``cupy.asarray``), NumPy through ``numpy.asarray``. It lives as long as its
    segmenter.

    Args:
        device: where it lies.
        shape: its shape.
        dtype: anything NumPy takes for a type.
        memory: holds it.
        ready: when it is there; what is queued on ``device.compute`` need not ask.
        borrowed: it is another library's, who may use the memory again when we let go of it.
    """

    def __init__(
        self,
        device: CudaDevice,
        shape: Sequence[int],
        dtype: DTypeLike,
        memory: Memory,
        ready: DeviceEvent,
        *,
        borrowed: bool = False,
    ) -> None:
        self.device, self.shape, self.dtype = device, tuple(shape), np.dtype(dtype)
        self.borrowed = borrowed
        self._memory, self._ready = memory, ready

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Of its first element. Raises BackendError when the device was closed meanwhile."""
        return self._memory.address

    @property
    def ready(self) -> DeviceEvent:
        """The moment when it is there."""
        return self._ready

    def changed(self) -> None:
        """Let readers wait for what was queued on ``device.compute``, which changes the tensor."""
        self._ready = self.device.event(self.device.compute)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            # The reader waits for what is queued there: so it may read before we have computed.
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
        """A capsule; what the reader queues on its stream from here on waits for the tensor.

        Raises:
            BufferError: it is asked for on another device, or as a copy.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(
                "a tensor on the GPU is given as it is; take it to the host by numpy.asarray"
            )
        device = self.device
        with device.lock, device.current():
            if stream != _NO_WAIT:
                compute = int(device.compute.handle)
                wait_for(device.bindings, LEGACY_STREAM if stream is None else stream, compute)
            return make_capsule(
                self.address, self.shape, self.dtype, self._memory, CUDA, device.ordinal
            )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a tensor on the GPU cannot become a NumPy array without a copy")
        (array,) = DeviceCopy([self]).arrays()
        return array if dtype is None else array.astype(dtype, copy=False)

    def reshape(self, *shape: int) -> DeviceTensor:
        """The same memory in another shape of as many elements."""
        assert math.prod(shape) == math.prod(self.shape)
        return DeviceTensor(
            self.device, shape, self.dtype, self._memory, self._ready, borrowed=self.borrowed
        )

    def __repr__(self) -> str:
        return f"DeviceTensor(shape={self.shape}, dtype={self.dtype}, on={self.device.name})"


class DeviceCopy:
    """Tensors on their way to the host; queued when it is made, waited for in :meth:`arrays`."""

    def __init__(self, tensors: Sequence[DeviceTensor]) -> None:
        """``tensors``: of one device, at least one."""
        self._tensors, self._device = list(tensors), tensors[0].device
        device = self._device
        with device.lock, device.current():
            self._pinned = [device.pinned(tensor.nbytes) for tensor in tensors]
            for tensor, pinned in zip(tensors, self._pinned, strict=True):
                tensor.ready.hold_up(device.download)
                room = pinned[: tensor.nbytes]
                device.driver.memcpy_dtoh_async(room, tensor.address, device.download)
            self._done = device.event(device.download)

    def arrays(self) -> list[NDArray[Any]]:
        """The arrays, in order, in memory of their own; once only."""
        with self._device.current():
            self._done.wait()
        arrays = [
            pinned[: tensor.nbytes].view(tensor.dtype).reshape(tensor.shape).copy()
            for tensor, pinned in zip(self._tensors, self._pinned, strict=True)
        ]
        for pinned in self._pinned:
            self._device.unpin(pinned)
        self._pinned, self._tensors = [], []
        return arrays


def compute(
    device: CudaDevice,
    kernel: str,
    threads: int,
    arguments: Sequence[Argument],
    shape: Sequence[int],
    dtype: DTypeLike,
) -> DeviceTensor:
    """Queue one of our kernels, whose last argument is what it writes: a tensor of its own.

    ``threads``: how many are needed; 0: nothing is to be written.

    Raises:
        BackendError: there are no kernels (says why), or memory is short.
    """
    kernels = device.kernels()
    with device.lock, device.current():
        room = device.allocate(max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        if threads:
            stream = int(device.compute.handle)
            kernels.launch(kernel, threads, [*arguments, pointer(room.address)], stream)
        return DeviceTensor(device, shape, dtype, room, device.event(device.compute))


def send(device: CudaDevice, array: NDArray[Any]) -> DeviceTensor:
    """A host array on the device, to stay there. Waits for the copy: for what is sent once.

    Raises:
        BackendError: the device's memory is short.
    """
    with device.lock, device.current():
        room = device.allocate(max(1, array.nbytes))
        pinned = device.pinned(max(1, array.nbytes))
        # What lay in that memory before may still be read by what is queued.
        device.event(device.compute).hold_up(device.upload)
        part = pinned[: array.nbytes]
        np.copyto(part.view(array.dtype).reshape(array.shape), array)
        device.driver.memcpy_htod_async(room.address, part, device.upload)
        arrived = device.event(device.upload)
        arrived.hold_up(device.compute)
    with device.current():
        arrived.wait()
    device.unpin(pinned)
    return DeviceTensor(device, array.shape, array.dtype, room, arrived)
