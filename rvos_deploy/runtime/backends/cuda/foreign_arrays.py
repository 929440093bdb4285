"""Use arrays of other libraries (PyTorch, CuPy, ...) on the same GPU without a copy.

The arrays come through DLPack (``__dlpack__``) or the CUDA array interface
(``__cuda_array_interface__``). This module imports none of those libraries.

NOT RUN with a GPU: tested on a recording stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TypedDict

import numpy as np

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.tensors import Scalar
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.dlpack import CUDA, Capsule
from rvos_deploy.runtime.backends.cuda.driver_calls import LEGACY_DEFAULT_STREAM, call, wait_for
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, Memory


class _OptionalKeys(TypedDict, total=False):
    strides: tuple[int, ...] | None
    stream: int | None


class _CudaInterface(_OptionalKeys):
    """The value of ``__cuda_array_interface__``."""

    shape: tuple[int, ...]
    typestr: str
    data: tuple[int, bool]
    version: int


class _Interface:
    """Memory described by the CUDA array interface; keeps its owner alive."""

    def __init__(self, owner: object, interface: _CudaInterface) -> None:
        self._owner = owner
        self.address = int(interface["data"][0] or 0)


def is_device_array(value: object) -> bool:
    """Tell whether a value is an array on a GPU."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == CUDA
    return hasattr(value, "__cuda_array_interface__")


def from_dlpack(device: CudaDevice, value: object) -> DeviceTensor:
    """Return another library's array as a tensor of this device, without a copy.

    Work queued on ``device.compute`` from now on waits until the owner has computed the array. The
    owner must not change the array before that work has read it; the array's memory is kept alive
    until then.

    Args:
        device: the GPU that holds the array.
        value: contiguous, with ``__dlpack__`` or ``__cuda_array_interface__``.

    Raises:
        InputError: the array is not contiguous, lies on another GPU, or has a type that NumPy
            lacks.
    """
    if isinstance(value, DeviceTensor):
        if value.device.ordinal != device.ordinal:
            raise _elsewhere(device.ordinal)
        if value.device is not device:
            raise InputError("this tensor is of another, closed segmenter; compute it again")
        return value
    with device.lock, device.current():
        compute = int(device.compute.handle)
        found = find_array(device.bindings, value, compute, device.ordinal)
        if found.awaited is not None:
            wait_for(device.bindings, compute, found.awaited)
        ready = device.event(device.compute)
        return DeviceTensor(device, found.shape, found.dtype, found.memory, ready, foreign=True)


@dataclass(frozen=True)
class ForeignArray:
    """Another library's contiguous array on a GPU.

    Args:
        shape: its shape.
        dtype: its type, in NumPy's terms.
        memory: gives the address, and keeps the array alive.
        awaited: the handle of the stream that computes the array; None where the owner has made the
            reading stream wait already.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Scalar]
    memory: Memory
    awaited: int | None


def find_array(driver: ModuleType, value: object, stream: int, ordinal: int) -> ForeignArray:
    """Locate another library's array, by DLPack, else by the CUDA array interface.

    Args:
        driver: ``cuda.bindings.driver``, with the GPU's context current.
        value: has ``__dlpack__`` or ``__cuda_array_interface__``.
        stream: the handle of the stream that will read the array; DLPack makes that stream wait.
        ordinal: the GPU that must hold the array.

    Raises:
        InputError: the array is not contiguous, lies on another GPU, or has a type that NumPy
            lacks.
    """
    if hasattr(value, "__dlpack__"):
        # Asked first, because the owner would make a stream of this GPU wait for its own.
        if hasattr(value, "__dlpack_device__"):
            kind, number = value.__dlpack_device__()
            if (int(kind), int(number)) != (CUDA, ordinal):
                raise _elsewhere(ordinal)
        capsule = Capsule(value.__dlpack__(stream=stream))
        if (capsule.kind, capsule.ordinal) != (CUDA, ordinal):
            raise _elsewhere(ordinal)
        _require_contiguous(capsule.shape, capsule.strides, capsule.dtype.itemsize)
        return ForeignArray(capsule.shape, capsule.dtype, capsule, None)
    assert hasattr(value, "__cuda_array_interface__")
    interface: _CudaInterface = value.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    memory = _Interface(value, interface)
    _require_contiguous(shape, interface.get("strides"), dtype.itemsize)
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    if int(call(driver, "cuPointerGetAttribute", attribute, memory.address)) != ordinal:
        raise _elsewhere(ordinal)
    _require_context(driver, memory.address)
    # Before version 3 the interface named no stream, and the default stream was meant.
    awaited = interface.get("stream", LEGACY_DEFAULT_STREAM if interface["version"] < 3 else None)
    return ForeignArray(shape, dtype, memory, None if awaited is None else int(awaited))


def _require_context(driver: ModuleType, address: int) -> None:
    """Check that memory was allocated in the context that is current, the primary one.

    ``pycuda.autoinit`` makes a context of its own, whose memory no other context can read. CUDA's
    memory pools belong to no context.
    """
    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
    error, owner = driver.cuPointerGetAttribute(attribute, address)
    if int(error) or not owner or int(owner) in (0, int(call(driver, "cuCtxGetCurrent"))):
        return
    raise InputError(
        "this array lies in a CUDA context of its own, which the graphs cannot read; with pycuda, "
        "import pycuda.autoprimaryctx in place of pycuda.autoinit"
    )


def _require_contiguous(shape: Sequence[int], strides: Sequence[int] | None, itemsize: int) -> None:
    if strides is None:
        return
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            raise InputError(
                f"an array on the GPU must be contiguous, found strides {list(strides)} for shape "
                f"{list(shape)}; pass frame.contiguous() (PyTorch) or cupy.ascontiguousarray(frame)"
            )
        expected *= size


def _elsewhere(ordinal: int) -> InputError:
    return InputError(
        f"this array is not on GPU {ordinal}, where the graphs run; move it there first, or pass "
        "it from the host (frame.cpu().numpy())"
    )
