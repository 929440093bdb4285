"""Find this machine's NVIDIA GPU through the driver; no CUDA package is needed.

NOT RUN where there is a driver: the development machine has none. The tests run the answer None
there, and the calls on a stand-in of the driver.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from dataclasses import dataclass
from typing import Any

# CUdevice_attribute, from the CUDA driver API's header.
_MAJOR, _MINOR = 75, 76
_UUID_BYTES = 16


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its compute capability, for example "8.9"."""

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """Return the first GPU that CUDA shows to this process; None without a driver or a GPU."""
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
            return None
        numbers.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(numbers))


def gpu_uuid(ordinal: int = 0) -> str | None:
    """Return the UUID of a GPU that CUDA shows, as nvidia-smi takes it: ``GPU-1a2b3c4d-...``.

    CUDA's numbers are not nvidia-smi's: ``CUDA_VISIBLE_DEVICES`` hides and reorders GPUs for CUDA
    alone. Of a MIG instance this is the UUID of its GPU, whose clocks and power nvidia-smi reports
    (the driver's older call, without ``_v2``, answers so).

    Args:
        ordinal: the number of the GPU among those that CUDA shows.

    Returns:
        None without a driver or without such a GPU.
    """
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    device, raw = ctypes.c_int(), (ctypes.c_ubyte * _UUID_BYTES)()
    if driver.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
        return None
    if driver.cuDeviceGetUuid(raw, device) != 0:
        return None
    return f"GPU-{uuid.UUID(bytes=bytes(raw))}"


def driver_cuda_version() -> tuple[int, int] | None:
    """Return the newest CUDA release that the driver runs, (major, minor); None without a driver.

    A driver without a GPU answers, too.
    """
    driver = _driver()
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _driver() -> Any | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
