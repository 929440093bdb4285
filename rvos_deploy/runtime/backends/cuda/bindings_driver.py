"""Drive CUDA by ``cuda.bindings`` alone, which installs from wheels: no compiler, no CUDA toolkit.

:class:`BindingsDriver` follows the contract of ``driver.py``. Like pycuda it frees streams and
events when Python frees their objects, and memory when it is told to.

NOT RUN: it needs a GPU. The tests of pycuda's stand-in run on a stand-in of
``cuda.bindings.driver`` too, and the real ``cuda.bindings`` run over a C library in place of the
driver.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.tensors import HostArray
from rvos_deploy.runtime.backends.cuda.driver import CurrentContext, DriverDevice
from rvos_deploy.runtime.backends.cuda.staging import DriverEvent, DriverStream

if TYPE_CHECKING:
    from rvos_deploy.runtime.backends.cuda.driver_calls import Handle


class CudaError(Exception):
    """A call of the CUDA driver failed."""


class CudaMemoryError(CudaError):
    """The GPU is out of memory."""


class BindingsDriver:
    """``cuda.bindings.driver`` with the names of the contract (see ``driver.Driver``)."""

    Error: type[Exception] = CudaError
    MemoryError: type[Exception] = CudaMemoryError

    def __init__(self, bindings: ModuleType) -> None:
        """``bindings``: ``cuda.bindings.driver``."""
        self._bindings = bindings
        self.Context: CurrentContext = _CurrentContext(bindings)
        self.Device: Callable[[int], DriverDevice] = partial(_Device, bindings)
        self.Stream: Callable[[int], DriverStream] = partial(_Stream, bindings)
        self.Event: Callable[[int], DriverEvent] = partial(_Event, bindings)

    def init(self) -> None:
        """Load and initialise the driver."""
        try:
            (error,) = self._bindings.cuInit(0)
        except RuntimeError:
            # cuda.bindings load the driver's library at the first call.
            raise CudaError("the CUDA driver's library cannot be loaded") from None
        _check(self._bindings, "cuInit", error)

    def mem_alloc(self, nbytes: int) -> _DeviceAllocation:
        """Allocate memory on the GPU."""
        (pointer,) = _call(self._bindings, "cuMemAlloc", nbytes)
        return _DeviceAllocation(self._bindings, pointer)

    def mem_get_info(self) -> tuple[int, int]:
        """Return the free and the total memory of the GPU in bytes."""
        free, total = _call(self._bindings, "cuMemGetInfo")
        return int(free), int(total)

    def pagelocked_empty(self, shape: int, dtype: type[np.uint8]) -> NDArray[np.uint8]:
        """Return a page-locked array, whose ``base`` frees the memory by ``free()``."""
        return np.asarray(_PinnedAllocation(self._bindings, shape), dtype)

    def memcpy_htod_async(self, dest: int, src: HostArray, stream: DriverStream) -> None:
        """Queue a copy of a page-locked array to the GPU."""
        handle = self._bindings.CUstream(int(stream.handle))
        _call(self._bindings, "cuMemcpyHtoDAsync", dest, src.ctypes.data, src.nbytes, handle)

    def memcpy_dtoh_async(self, dest: HostArray, src: int, stream: DriverStream) -> None:
        """Queue a copy from the GPU into a page-locked array."""
        handle = self._bindings.CUstream(int(stream.handle))
        _call(self._bindings, "cuMemcpyDtoHAsync", dest.ctypes.data, src, dest.nbytes, handle)

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: DriverStream) -> None:
        """Queue a copy on the GPU."""
        handle = self._bindings.CUstream(int(stream.handle))
        _call(self._bindings, "cuMemcpyDtoDAsync", dest, src, size, handle)


class _CurrentContext:
    def __init__(self, bindings: ModuleType) -> None:
        self._bindings = bindings

    def pop(self) -> None:
        _call(self._bindings, "cuCtxPopCurrent")


class _Device:
    def __init__(self, bindings: ModuleType, ordinal: int) -> None:
        self._bindings = bindings
        (self._device,) = _call(bindings, "cuDeviceGet", ordinal)

    def name(self) -> str:
        (name,) = _call(self._bindings, "cuDeviceGetName", 256, self._device)
        assert isinstance(name, bytes)
        return name.rstrip(b"\0").decode(errors="replace")

    def compute_capability(self) -> tuple[int, int]:
        attribute = self._bindings.CUdevice_attribute
        major, minor = (
            int(_call(self._bindings, "cuDeviceGetAttribute", which, self._device)[0])
            for which in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return major, minor

    def retain_primary_context(self) -> _PrimaryContext:
        return _PrimaryContext(self._bindings, self._device)


class _PrimaryContext:
    def __init__(self, bindings: ModuleType, device: Handle) -> None:
        self._bindings, self._device = bindings, device
        (self._context,) = _call(bindings, "cuDevicePrimaryCtxRetain", device)

    def push(self) -> None:
        _call(self._bindings, "cuCtxPushCurrent", self._context)

    def detach(self) -> None:
        _call(self._bindings, "cuDevicePrimaryCtxRelease", self._device)


class _Stream:
    def __init__(self, bindings: ModuleType, flags: int) -> None:
        self._bindings = bindings
        self._stream: Handle | None = None
        (self._stream,) = _call(bindings, "cuStreamCreate", flags)

    @property
    def handle(self) -> int:
        assert self._stream is not None
        return int(self._stream)

    def synchronize(self) -> None:
        _call(self._bindings, "cuStreamSynchronize", self._stream)

    def wait_for_event(self, event: DriverEvent) -> None:
        assert isinstance(event, _Event)
        _call(self._bindings, "cuStreamWaitEvent", self._stream, event.raw, 0)

    def __del__(self) -> None:
        if self._stream is not None:
            with suppress(CudaError):  # nobody could catch it
                _call(self._bindings, "cuStreamDestroy", self._stream)


class _Event:
    def __init__(self, bindings: ModuleType, flags: int) -> None:
        self._bindings = bindings
        self.raw: Handle | None = None
        (self.raw,) = _call(bindings, "cuEventCreate", flags)

    def record(self, stream: DriverStream) -> None:
        handle = self._bindings.CUstream(int(stream.handle))
        _call(self._bindings, "cuEventRecord", self.raw, handle)

    def synchronize(self) -> None:
        _call(self._bindings, "cuEventSynchronize", self.raw)

    def query(self) -> bool:
        (error,) = self._bindings.cuEventQuery(self.raw)
        if error == self._bindings.CUresult.CUDA_ERROR_NOT_READY:
            return False
        _check(self._bindings, "cuEventQuery", error)
        return True

    def __del__(self) -> None:
        if self.raw is not None:
            with suppress(CudaError):  # nobody could catch it
                _call(self._bindings, "cuEventDestroy", self.raw)


class _DeviceAllocation:
    def __init__(self, bindings: ModuleType, pointer: Handle) -> None:
        self._bindings, self._pointer = bindings, pointer

    def __int__(self) -> int:
        return int(self._pointer)

    def free(self) -> None:
        _call(self._bindings, "cuMemFree", self._pointer)


class _ArrayInterface(TypedDict):
    shape: tuple[int]
    typestr: str
    data: tuple[int, bool]
    version: int


class _PinnedAllocation:
    """Page-locked memory; NumPy keeps this object as the ``base`` of its array."""

    def __init__(self, bindings: ModuleType, nbytes: int) -> None:
        self._bindings = bindings
        (address,) = _call(bindings, "cuMemHostAlloc", nbytes, 0)
        self._address = int(address)
        self.__array_interface__: _ArrayInterface = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (self._address, False),
            "version": 3,
        }

    def free(self) -> None:
        _call(self._bindings, "cuMemFreeHost", self._address)


def _call(bindings: ModuleType, name: str, *arguments: object) -> tuple[Handle, ...]:
    """Call a function of the driver and return its results. Raises CudaError: it failed."""
    try:
        error, *results = getattr(bindings, name)(*arguments)
    except RuntimeError as missing:
        # An older driver lacks a function.
        raise CudaError(f"{name}: {str(missing).splitlines()[0]}") from None
    _check(bindings, name, error)
    return tuple(results)


def _check(bindings: ModuleType, name: str, error: Handle) -> None:
    if error == bindings.CUresult.CUDA_SUCCESS:
        return
    memory = error == bindings.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    _, text = bindings.cuGetErrorString(error)
    reason = text.decode(errors="replace") if text else f"error {int(error)}"
    raise (CudaMemoryError if memory else CudaError)(f"{name} failed: {reason}")
