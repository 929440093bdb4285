"""Pieces of tensors on the GPU put together there: slots in order, the memory of frame queries.

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


def stack(rows: Sequence[Sequence[DeviceTensor | None]]) -> DeviceTensor:
    """Tensors of equal shape as one, [rows, columns, ...]; None stands for zeros.

    Queued. Raises BackendError: there are no kernels (says why), or memory is short.
    """
    pieces = [piece for row in rows for piece in row]
    first = next(piece for piece in pieces if piece is not None)
    addresses = np.array([0 if piece is None else piece.address for piece in pieces])
    shape = (len(rows), len(rows[0]), *first.shape)
    return _copy(first.device, addresses, first.nbytes, shape, first.dtype)


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
