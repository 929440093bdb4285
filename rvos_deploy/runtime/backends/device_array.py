"""Arrays of other libraries on the same GPU (PyTorch, CuPy, ...), without a copy.

By DLPack (``__dlpack__``) or the CUDA array interface (``__cuda_array_interface__``); no library is
imported for it. DLPack's structures are those of its header, dlpack.h, version 1.

NOT RUN with a GPU. The capsules were read with NumPy's and PyTorch's own, on the host; the rest on
a recording stand-in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends.cuda_device import CudaDevice
from rvos_deploy.runtime.backends.cuda_libraries import call
from rvos_deploy.runtime.backends.device_tensor import DeviceTensor

_DLPACK_CUDA = 2
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
_LEGACY_STREAM = 1


class _DLDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _DLTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Capsule:
    """A DLPack capsule's tensor; given back to its owner when nothing refers to it any more."""

    def __init__(self, capsule: object) -> None:
        """Takes the capsule over: nobody else may use it afterwards.

        Raises:
            InputError: not a capsule, or one that was used.
        """
        self._managed: int | None = None
        api = ctypes.pythonapi
        api.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        api.PyCapsule_GetPointer.restype = ctypes.c_void_p
        api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
        if not api.PyCapsule_IsValid(capsule, b"dltensor"):
            raise InputError("__dlpack__ gave no capsule that can be used; pass a fresh tensor")
        managed = api.PyCapsule_GetPointer(capsule, b"dltensor")
        api.PyCapsule_SetName(capsule, b"used_dltensor")
        self._managed = managed
        tensor = _DLManagedTensor.from_address(managed).tensor
        self.shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        self.dtype = _dtype(tensor.dtype)
        self.strides: tuple[int, ...] | None = None
        if tensor.strides:
            steps = (tensor.strides[axis] for axis in range(tensor.ndim))
            self.strides = tuple(step * self.dtype.itemsize for step in steps)
        self.kind, self.ordinal = int(tensor.device.kind), int(tensor.device.ordinal)
        self.address = int(tensor.data or 0) + int(tensor.byte_offset)

    def __del__(self) -> None:
        managed, self._managed = self._managed, None
        if managed:
            deleter = _DLManagedTensor.from_address(managed).deleter
            if deleter:
                ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)(managed)


class _Interface:
    """Memory told by the CUDA array interface; its owner is kept."""

    def __init__(self, owner: object, interface: Mapping[str, Any]) -> None:
        self._owner = owner
        self.address = int(interface["data"][0] or 0)


def is_device_array(value: object) -> bool:
    """Whether a value lies on a GPU and says so."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) == _DLPACK_CUDA
    return hasattr(value, "__cuda_array_interface__")


def borrow(device: CudaDevice, value: Any) -> DeviceTensor:
    """Another library's array as a tensor here, without a copy.

    What is queued for computation from here on waits until its owner has computed it. It must stay
    unchanged until then; the owner's memory is kept for as long.

    Args:
        device: where it must lie.
        value: contiguous, with ``__dlpack__`` or ``__cuda_array_interface__``.

    Raises:
        InputError: not contiguous, on another GPU, or of a type that NumPy does not have.
    """
    if isinstance(value, DeviceTensor):
        if value.device is not device:
            raise InputError("this tensor is of another, closed segmenter; compute it again")
        return value
    with device.lock, device.current():
        if hasattr(value, "__dlpack__"):
            # The owner makes its tensor ready for that stream.
            capsule = Capsule(value.__dlpack__(stream=int(device.compute.handle)))
            if (capsule.kind, capsule.ordinal) != (_DLPACK_CUDA, device.ordinal):
                raise _elsewhere(device)
            _require_contiguous(capsule.shape, capsule.strides, capsule.dtype.itemsize)
            ready = device.event(device.compute)
            return DeviceTensor(device, capsule.shape, capsule.dtype, capsule, ready, borrowed=True)
        interface = value.__cuda_array_interface__
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        memory = _Interface(value, interface)
        _require_contiguous(shape, interface.get("strides"), dtype.itemsize)
        attribute = device.bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        if int(call(device.bindings, "cuPointerGetAttribute", attribute, memory.address)) != (
            device.ordinal
        ):
            raise _elsewhere(device)
        # Before version 3 there was no word on streams: then it is the default one.
        stream = interface.get("stream", _LEGACY_STREAM if interface["version"] < 3 else None)
        if stream is not None:
            _wait_for(device, int(stream))
        ready = device.event(device.compute)
        return DeviceTensor(device, shape, dtype, memory, ready, borrowed=True)


def _wait_for(device: CudaDevice, stream: int) -> None:
    """Let computation wait for what is queued now on another library's stream."""
    driver = device.bindings
    flags = int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)
    event = call(driver, "cuEventCreate", flags)
    try:
        call(driver, "cuEventRecord", event, driver.CUstream(stream))
        call(driver, "cuStreamWaitEvent", driver.CUstream(int(device.compute.handle)), event, 0)
    finally:
        # CUDA frees it once it has passed.
        call(driver, "cuEventDestroy", event)


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


def _dtype(told: _DLDataType) -> np.dtype[Any]:
    kind = _DLPACK_KINDS.get(int(told.code))
    if kind is None or told.lanes != 1 or told.bits % 8:
        raise InputError(
            f"DLPack type code {told.code} with {told.bits} bits and {told.lanes} lanes has no "
            "NumPy type; convert the tensor first"
        )
    return np.dtype(f"{kind}{told.bits // 8}")


def _elsewhere(device: CudaDevice) -> InputError:
    return InputError(
        f"this array is not on GPU {device.ordinal} ({device.name}), where the engines are; move "
        "it there first, or pass it from the host (frame.cpu().numpy())"
    )
