"""Copy parts of tensors on the GPU: gather rows, and keep the memory of frame queries.

One kernel copies blocks of equal size from a list of addresses. Only the addresses are uploaded.

NOT RUN: it needs a GPU (see kernels.py).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np

from rvos_deploy.graph_io.tensors import DType, Indices
from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import pointer
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, run_kernel

_VECTOR = 16
"""Bytes that one thread copies where sizes and addresses are multiples of it."""


def gather(value: DeviceTensor, index: Indices) -> DeviceTensor:
    """Queue a gather of rows.

    Args:
        value: [R,...], or [E,N,...].
        index: [K] gives ``value[index]``; [E,N] gives ``value[e][index[e]]`` for every e.

    Raises:
        BackendError: the kernels are not available (says why), or the GPU is out of memory.
    """
    rows = index.astype(np.int64)
    if index.ndim == 2:
        rows = rows + np.arange(len(rows))[:, None] * value.shape[1]
    rest = value.shape[index.ndim :]
    nbytes = math.prod(rest) * value.dtype.itemsize
    addresses = value.address + rows.ravel() * nbytes
    return _copy(value.device, addresses, nbytes, (*index.shape, *rest), value.dtype)


def zeros(device: CudaDevice, shape: tuple[int, ...], dtype: DType) -> DeviceTensor:
    """Queue a new tensor of zeros [R,M,...].

    Raises:
        BackendError: as :func:`gather`.
    """
    nbytes = math.prod(shape[2:]) * np.dtype(dtype).itemsize
    return _copy(device, np.zeros(math.prod(shape[:2]), np.uint64), nbytes, shape, dtype)


def resized(value: DeviceTensor, rows: Indices, columns: int) -> DeviceTensor:
    """Queue a new tensor [len(rows), columns, ...] that begins like rows of another.

    Args:
        value: [E,M,...].
        rows: [R], rows of ``value``; -1 stands for a row of zeros.
        columns: at least one. Columns beyond M are zeros.

    Raises:
        BackendError: as :func:`gather`.
    """
    rest = value.shape[2:]
    nbytes = math.prod(rest) * value.dtype.itemsize
    column = np.arange(columns)
    addresses = value.address + (rows[:, None] * value.shape[1] + column) * nbytes
    addresses[(rows < 0)[:, None] | (column >= value.shape[1])] = 0
    shape = (len(rows), columns, *rest)
    return _copy(value.device, addresses.ravel(), nbytes, shape, value.dtype)


def concatenate(values: Sequence[DeviceTensor]) -> DeviceTensor:
    """Queue the concatenation of tensors [R,...] of one type that differ in R alone.

    Raises:
        BackendError: as :func:`gather`.
    """
    first, rest = values[0], values[0].shape[1:]
    nbytes = math.prod(rest) * first.dtype.itemsize
    addresses = [value.address + row * nbytes for value in values for row in range(value.shape[0])]
    return _copy(first.device, np.array(addresses), nbytes, (len(addresses), *rest), first.dtype)


def write(target: DeviceTensor, positions: Indices, values: DeviceTensor) -> None:
    """Queue ``target[e, positions[e]] = values[e]`` for every e, one copy on the GPU each.

    Args:
        target: [E,M,...].
        positions: [E].
        values: [E,...], of the type of ``target``.
    """
    device = target.device
    nbytes = math.prod(target.shape[2:]) * target.dtype.itemsize
    with device.lock, device.current():
        for row, position in enumerate(positions.tolist()):
            destination = target.address + (row * target.shape[1] + position) * nbytes
            source = values.address + row * nbytes
            device.driver.memcpy_dtod_async(destination, source, nbytes, device.compute)
        target.mark_written()
        if values.foreign:
            device.keep_alive(values)


def _copy(
    device: CudaDevice,
    addresses: Indices,
    nbytes: int,
    shape: tuple[int, ...],
    dtype: DType,
) -> DeviceTensor:
    """Queue a tensor of blocks of ``nbytes`` bytes, one from each address; address 0 gives zeros.

    The memory at the addresses may be released at once, because its next user is queued behind the
    copy.
    """
    table = addresses.astype(np.uint64)
    aligned = nbytes % _VECTOR == 0 and not (table % _VECTOR).any()
    kernel, word = ("rvos_copy_vectors", _VECTOR) if aligned else ("rvos_copy_bytes", 1)
    words = nbytes // word
    total = words * len(table)
    with device.lock, device.current():
        staging = device.acquire_staging(table.nbytes)
        try:
            staging.upload(table)
            arguments = [
                pointer(staging.address),
                (words, ctypes.c_longlong),
                (total, ctypes.c_longlong),
            ]
            copied = run_kernel(device, kernel, total, arguments, shape, dtype)
            staging.mark_read()
        finally:
            device.release_staging(staging)
        return copied
