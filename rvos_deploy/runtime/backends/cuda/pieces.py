"""Pieces of tensors on the GPU copied there: slots in order, the memory of frame queries.

One kernel copies pieces of equal size from a list of addresses, which is all that goes up.

NOT RUN: it needs a GPU (see cuda_kernels.py).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rvos_deploy.runtime.backends.cuda.device import CudaDevice
from rvos_deploy.runtime.backends.cuda.kernels import pointer
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, compute

_VECTOR = 16


def gather(value: DeviceTensor, index: NDArray[np.integer]) -> DeviceTensor:
    """``value[index]`` for an index [R]; ``value[e][index[e]]`` for every e, for one [E,N].

    Queued. Raises BackendError: there are no kernels (says why), or memory is short.
    """
    rows = index.astype(np.int64)
    if index.ndim == 2:
        rows = rows + np.arange(len(rows))[:, None] * value.shape[1]
    rest = value.shape[index.ndim :]
    nbytes = math.prod(rest) * value.dtype.itemsize
    addresses = value.address + rows.ravel() * nbytes
    return _copy(value.device, addresses, nbytes, (*index.shape, *rest), value.dtype)


def zeros(device: CudaDevice, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceTensor:
    """Return a tensor of zeros [R,M,...].

    Queued. Raises BackendError: there are no kernels (says why), or memory is short.
    """
    nbytes = math.prod(shape[2:]) * np.dtype(dtype).itemsize
    return _copy(device, np.zeros(math.prod(shape[:2]), np.uint64), nbytes, shape, dtype)


def resized(value: DeviceTensor, rows: NDArray[np.integer], columns: int) -> DeviceTensor:
    """Return a tensor [len(rows),columns,...] that begins like rows of ``value`` [E,M,...]; -1
    stands for a row of zeros.

    Queued. Raises BackendError: there are no kernels (says why), or memory is short.
    """
    rest = value.shape[2:]
    nbytes = math.prod(rest) * value.dtype.itemsize
    place = np.arange(columns)
    addresses = value.address + (rows[:, None] * value.shape[1] + place) * nbytes
    addresses[(rows < 0)[:, None] | (place >= value.shape[1])] = 0
    shape = (len(rows), columns, *rest)
    return _copy(value.device, addresses.ravel(), nbytes, shape, value.dtype)


def concatenate(values: Sequence[DeviceTensor]) -> DeviceTensor:
    """Return tensors [R,...] of one type, which differ in R alone, as one.

    Queued. Raises BackendError: there are no kernels (says why), or memory is short.
    """
    first, rest = values[0], values[0].shape[1:]
    nbytes = math.prod(rest) * first.dtype.itemsize
    addresses = [value.address + row * nbytes for value in values for row in range(value.shape[0])]
    return _copy(first.device, np.array(addresses), nbytes, (len(addresses), *rest), first.dtype)


def write(target: DeviceTensor, positions: NDArray[np.integer], values: DeviceTensor) -> None:
    """Set ``target[e, positions[e]] = values[e]``: one copy on the device for every e. Queued."""
    device = target.device
    nbytes = math.prod(target.shape[2:]) * target.dtype.itemsize
    with device.lock, device.current():
        for row, position in enumerate(positions.tolist()):
            there = target.address + (row * target.shape[1] + position) * nbytes
            device.driver.memcpy_dtod_async(
                there, values.address + row * nbytes, nbytes, device.compute
            )
        target.changed()
        if values.borrowed:
            device.keep(values)


def _copy(
    device: CudaDevice,
    addresses: NDArray[np.integer],
    nbytes: int,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> DeviceTensor:
    """One piece of ``nbytes`` from each address. Whose memory it is may be given back at once: what
    takes it over is queued behind.
    """
    table = addresses.astype(np.uint64)
    whole = nbytes % _VECTOR == 0 and not (table % _VECTOR).any()
    kernel, word = ("rvos_stack_vectors", _VECTOR) if whole else ("rvos_stack_bytes", 1)
    words = nbytes // word
    total = words * len(table)
    with device.lock, device.current():
        staging = device.staging(table.nbytes)
        try:
            staging.put(table)
            arguments = [
                pointer(staging.address),
                (words, ctypes.c_longlong),
                (total, ctypes.c_longlong),
            ]
            copied = compute(device, kernel, total, arguments, shape, dtype)
            staging.consumed()
        finally:
            device.unstage(staging)
        return copied
