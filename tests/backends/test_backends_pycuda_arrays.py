"""Test arrays of pycuda: they are read where they are, whichever package drives CUDA."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gpu_fixtures import both_drivers
from recording_cuda import Gpu

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.foreign_arrays import from_dlpack, is_device_array
from rvos_deploy.runtime.backends.cuda.tensor import to_device

pytestmark = both_drivers


def gpuarray(address: int, array: np.ndarray) -> SimpleNamespace:
    """Return what ``pycuda.gpuarray.GPUArray`` (2026.1) shows to other libraries."""
    return SimpleNamespace(
        __cuda_array_interface__={
            "shape": array.shape,
            "strides": array.strides,
            "data": (address, False),
            "typestr": array.dtype.str,
            "stream": None,
            "version": 3,
        }
    )


def test_arrays_of_pycuda_are_read_where_they_are(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    memory = to_device(device, array)
    theirs = gpuarray(memory.address, array)
    assert is_device_array(theirs)
    tensor = from_dlpack(device, theirs)
    assert tensor.address == memory.address
    assert (np.asarray(tensor) == array).all()
    del tensor, memory
    device.release()
    gpu.check_clean()


def test_arrays_of_autoinits_context_are_refused_with_the_import(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    memory = to_device(device, np.zeros(4, np.float32))
    gpu.bindings.context_of_pointers = 0xA0
    with pytest.raises(InputError, match=r"pycuda\.autoprimaryctx in place of pycuda\.autoinit"):
        from_dlpack(device, gpuarray(memory.address, np.zeros(4, np.float32)))
    gpu.bindings.context_of_pointers = 0  # memory of a pool
    from_dlpack(device, gpuarray(memory.address, np.zeros(4, np.float32)))
    del memory
    device.release()
    gpu.check_clean()
