"""Other libraries' arrays on the GPU as inputs of ONNX Runtime's CUDA provider, by their address.

ONNX Runtime computes on a stream of its own that nobody else can wait for, so the host waits until
the array is there. The CUDA driver is called through cuda-bindings, imported when such an array
comes.

NOT RUN on a GPU: tested on a recording stand-in, and binding by address by ONNX Runtime on the CPU.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.foreign_arrays import FoundArray, find_array
from rvos_deploy.runtime.backends.cuda.libraries import LEGACY_STREAM, call

ORDINAL = 0
"""The GPU that the CUDA provider runs on."""


class BorrowedArray:
    """Another library's array on the GPU, computed and contiguous; it is kept, and not copied."""

    def __init__(self, found: FoundArray, shape: tuple[int, ...]) -> None:
        self._found, self.shape, self.dtype = found, shape, found.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """Of its first element."""
        return self._found.memory.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        place = (self.address, False)
        told = {"shape": self.shape, "typestr": self.dtype.str, "data": place, "version": 3}
        return {**told, "strides": None, "stream": None}

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("an array on the GPU cannot become a NumPy array without a copy")
        array = np.empty(self.shape, self.dtype)
        driver = _driver()
        with _primary_context(driver):
            call(driver, "cuMemcpyDtoH", array.ctypes.data, self.address, array.nbytes)
        return array if dtype is None else array.astype(dtype, copy=False)

    def reshape(self, *shape: int) -> BorrowedArray:
        """The same memory in another shape of as many elements."""
        assert math.prod(shape) == math.prod(self.shape)
        return BorrowedArray(self._found, shape)


def borrow_for_onnxruntime(value: Any) -> BorrowedArray:
    """Another library's array, once it is computed: the host waits for that.

    Args:
        value: contiguous, with ``__dlpack__`` or ``__cuda_array_interface__``.

    Raises:
        InputError: not contiguous, on another GPU, or of a type that NumPy does not have.
        BackendError: cuda-bindings is missing, or the driver refuses.
    """
    driver = _driver()
    with _primary_context(driver):
        found = find_array(driver, value, LEGACY_STREAM, ORDINAL)
        # Owners that speak DLPack have made the default stream wait.
        spoken = hasattr(value, "__dlpack__")
        awaited = LEGACY_STREAM if spoken else found.awaited
        if awaited is not None:
            call(driver, "cuStreamSynchronize", driver.CUstream(awaited))
    return BorrowedArray(found, found.shape)


@contextmanager
def _primary_context(driver: Any) -> Iterator[None]:
    """The context that ONNX Runtime and other libraries share, current for a block."""
    call(driver, "cuInit", 0)
    device = call(driver, "cuDeviceGet", ORDINAL)
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
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        raise BackendError(
            "cuda-bindings is not installed, which arrays on the GPU are read through; "
            "pip install 'rvos-deploy[gpu]', or pass a NumPy array"
        ) from None
