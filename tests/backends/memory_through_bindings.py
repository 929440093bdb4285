"""Run by a test in a process of its own: memory and streams through the real cuda.bindings."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
from cuda.bindings import driver

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda import copies
from rvos_deploy.runtime.backends.cuda.bindings_driver import BindingsDriver
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries
from rvos_deploy.runtime.backends.cuda.tensor import DeviceCopy, to_device

KINDS = ("contexts", "streams", "events", "device memory", "pinned memory")

libraries = CudaLibraries(BindingsDriver(driver), driver, "cuda-bindings")
with pytest.raises(BackendError, match=r"no NVIDIA GPU 1 .*cuDeviceGet failed: invalid device ord"):
    acquire_device(libraries, 1)
device = acquire_device(libraries)
assert (device.name, device.compute_capability) == ("host memory", "8.6")
target = to_device(device, np.zeros((2, 3, 4), np.float32))
rows = np.arange(8, dtype=np.float32).reshape(2, 4)
values = to_device(device, rows)
copies.write(target, np.array([2, 0]), values)
found, back = DeviceCopy([target, values]).arrays()
truth = np.zeros((2, 3, 4), np.float32)
truth[0, 2], truth[1, 0] = rows
assert (found == truth).all()
assert (back == rows).all()
with device.lock, device.current():
    staging = device.acquire_staging(rows.nbytes)
    staging.upload(rows)
    staging.mark_read()
    device.release_staging(staging)
    assert not device.event(device.compute).query()  # this driver always says so
with pytest.raises(BackendError, match="8192 MiB are needed, 5 of 7 MiB are free"):
    device.allocate(2**33)
library = ctypes.CDLL("libcuda.so.1")
living = {kind: library.rvos_living(number) for number, kind in enumerate(KINDS)}
assert min(living.values()) > 0, living
del target, values, staging
device.release()
gc.collect()
living = {kind: library.rvos_living(number) for number, kind in enumerate(KINDS)}
assert not any(living.values()), living
print("memory, streams and events work")
