"""Feed other libraries' arrays on the GPU to ONNX Runtime's CUDA provider, by their address.

ONNX Runtime computes on a stream of its own that nothing else can wait for, so the host waits until
the array is computed. cuda-bindings calls the CUDA driver; it is imported when an array comes.

NOT RUN on a GPU. A recording stand-in tests this module, and ONNX Runtime on the CPU tests binding
by address.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.cuda.driver_calls import LEGACY_DEFAULT_STREAM, call
from rvos_deploy.runtime.backends.cuda.foreign_arrays import (
    ForeignArray,
    find_array,
    is_device_array,
)
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.backends.imports import import_library


class CudaArray:
    """Another library's computed, contiguous array on a GPU; kept alive, and not copied."""

    def __init__(self, found: ForeignArray, shape: tuple[int, ...], ordinal: int = 0) -> None:
        self._found, self.shape, self.dtype = found, shape, found.dtype
        self._ordinal = ordinal

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """The device address of the first element."""
        return self._found.memory.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("an array on the GPU cannot become a NumPy array without a copy")
        array = np.empty(self.shape, self.dtype)
        driver = _driver()
        with _primary_context(driver, self._ordinal):
            call(driver, "cuMemcpyDtoH", array.ctypes.data, self.address, array.nbytes)
        return array if dtype is None else array.astype(dtype, copy=False)

    def reshape(self, *shape: int) -> CudaArray:
        """Return the same memory in another shape of as many elements."""
        assert math.prod(shape) == math.prod(self.shape)
        return CudaArray(self._found, shape, self._ordinal)


class CudaArrayOps(HostOps):
    """Tensor operations of ONNX Runtime's CUDA provider. Frames on the GPU stay there; the host
    does the rest.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """``ordinal``: the number of the provider's GPU."""
        self._ordinal = ordinal

    def from_dlpack(self, array: object) -> Tensor:
        """Return a computed array on the GPU without a copy, and an array on the host as a NumPy
        array.
        """
        if is_device_array(array):
            return cuda_from_dlpack(array, self._ordinal)
        return super().from_dlpack(array)

    def preprocess(self, frame: Tensor, geometry: FrameGeometry) -> Tensor:
        """Leave a frame of the network's input size on the GPU; resize other frames on the host."""
        fits = geometry.content == geometry.padded == frame.shape[:2]
        if fits and isinstance(frame, CudaArray):
            return frame.reshape(1, *frame.shape)
        return super().preprocess(frame, geometry)


def cuda_from_dlpack(value: Any, ordinal: int = 0) -> CudaArray:
    """Return another library's array after the host has waited for its computation.

    Args:
        value: contiguous, with ``__dlpack__`` or ``__cuda_array_interface__``.
        ordinal: the number of the GPU that must hold the array.

    Raises:
        InputError: the array is not contiguous, lies on another GPU, or has a type that NumPy
            lacks.
        BackendError: cuda-bindings is missing, or the driver refuses.
    """
    driver = _driver()
    with _primary_context(driver, ordinal):
        found = find_array(driver, value, LEGACY_DEFAULT_STREAM, ordinal)
        # DLPack makes the default stream wait for the array's owner.
        by_dlpack = hasattr(value, "__dlpack__")
        awaited = LEGACY_DEFAULT_STREAM if by_dlpack else found.awaited
        if awaited is not None:
            call(driver, "cuStreamSynchronize", driver.CUstream(awaited))
    return CudaArray(found, found.shape, ordinal)


@contextmanager
def _primary_context(driver: Any, ordinal: int) -> Iterator[None]:
    """Make the context that ONNX Runtime and other libraries share current for a block."""
    call(driver, "cuInit", 0)
    device = call(driver, "cuDeviceGet", ordinal)
    context = call(driver, "cuDevicePrimaryCtxRetain", device)
    try:
        call(driver, "cuCtxPushCurrent", context)
        try:
            yield
        finally:
            call(driver, "cuCtxPopCurrent")
    finally:
        call(driver, "cuDevicePrimaryCtxRelease", device)


def _driver() -> Any:
    driver = import_library("cuda.bindings.driver", "cuda-bindings")
    if driver is None:
        raise BackendError(
            "cuda-bindings is not installed, which arrays on the GPU are read through; "
            "pip install 'rvos-deploy[gpu]', or pass a NumPy array"
        )
    return driver
