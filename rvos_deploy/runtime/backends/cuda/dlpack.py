"""Exchange arrays with other libraries through DLPack, without a copy and without importing them.

The structures follow DLPack's header, dlpack.h, version 1. The tests read capsules of NumPy and
PyTorch with this module, and its capsules with NumPy and PyTorch, on the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.tensors import Scalar

CPU, CUDA = 1, 2  # DLPack's device types
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}


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
    """The tensor of a DLPack capsule. Its owner gets the tensor back once nothing references it."""

    def __init__(self, capsule: object) -> None:
        """Consume a capsule; nothing else may use it afterwards.

        Raises:
            InputError: the object is no capsule, or the capsule was consumed before.
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


class _Export:
    """The structure that a capsule of this module points to, and the owner of the memory."""

    def __init__(
        self, tensor: _DLTensor, shape: ctypes.Array[ctypes.c_int64], owner: object
    ) -> None:
        self.managed = _DLManagedTensor(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
        self._shape, self._owner = shape, owner


_exported: dict[int, _Export] = {}
"""Exports by the address of their structure, until the consumer of the capsule releases them."""


def make_capsule(
    address: int,
    shape: Sequence[int],
    dtype: np.dtype[Scalar],
    owner: object,
    kind: int,
    ordinal: int = 0,
) -> object:
    """Make a capsule of contiguous memory.

    Args:
        address: of the first byte.
        shape: of the array.
        dtype: a NumPy type of numbers or of truth values.
        owner: kept alive until the capsule, or the array made from it, is gone.
        kind: ``CPU`` or ``CUDA``.
        ordinal: the number of the device.
    """
    codes = {letter: code for code, letter in _DLPACK_KINDS.items()}
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    tensor = _DLTensor(
        address,
        _DLDevice(kind, ordinal),
        len(shape),
        _DLDataType(codes[dtype.kind], 8 * dtype.itemsize, 1),
        ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64)),
        None,
        0,
    )
    export = _Export(tensor, sizes, owner)
    at = ctypes.addressof(export.managed)
    _exported[at] = export
    capsule: object = _new_capsule(at, _FRESH, ctypes.cast(_destructor, ctypes.c_void_p))
    return capsule


def _delete(managed: int) -> None:
    """Release an export; the consumer may call this from any thread."""
    _exported.pop(managed, None)


def _drop(capsule: int) -> None:
    """End a capsule; an export that nobody consumed ends with it."""
    if _is_valid(capsule, _FRESH):
        _delete(_pointer_of(capsule, _FRESH))


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_drop)
_FRESH = b"dltensor"
# These prototypes pass capsules as pointers: a capsule that ends has no references left.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


def _dtype(given: _DLDataType) -> np.dtype[Scalar]:
    kind = _DLPACK_KINDS.get(int(given.code))
    if kind is None or given.lanes != 1 or given.bits % 8:
        raise InputError(
            f"DLPack type code {given.code} with {given.bits} bits and {given.lanes} lanes has no "
            "NumPy type; convert the tensor first"
        )
    return np.dtype(f"{kind}{given.bits // 8}")
