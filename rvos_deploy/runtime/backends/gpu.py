"""Find this machine's NVIDIA GPUs through the driver; no CUDA package is needed.

NOT RUN where there is a driver: the development machine has none. The tests run the answer None
there, and the calls on a stand-in of the driver.
"""

from __future__ import annotations

import ctypes
import sys
import uuid
from dataclasses import dataclass

from rvos_deploy.errors import InputError

# CUdevice_attribute, from the CUDA driver API's header.
_MAJOR, _MINOR = 75, 76
_UUID_BYTES = 16


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its compute capability, for example "8.9"."""

    name: str
    compute_capability: str


def find_gpu(ordinal: int = 0) -> Gpu | None:
    """Return a GPU that CUDA shows to this process; None without a driver or without such a GPU.

    Args:
        ordinal: the number of the GPU among those that CUDA shows.
    """
    driver = _started_driver()
    device = None if driver is None else _device(driver, ordinal)
    if driver is None or device is None:
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
            return None
        numbers.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(numbers))


def gpu_count() -> int:
    """Return how many GPUs CUDA shows to this process; 0 without a driver."""
    driver, count = _started_driver(), ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


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
    return next((name for name in _uuids(ordinal) if name.startswith("GPU-")), None)


def gpu_of_uuid(name: str) -> int:
    """Return the number of the GPU, or of the MIG instance, with this UUID.

    Args:
        name: as nvidia-smi lists it (``nvidia-smi -L``): ``GPU-1a2b3c4d-...`` or ``MIG-...``.

    Raises:
        InputError: CUDA shows no such GPU to this process; lists the UUIDs that it shows.
    """
    shown = [_uuids(ordinal) for ordinal in range(gpu_count())]
    wanted = name.lower()
    for ordinal, names in enumerate(shown):
        if wanted in [own.lower() for own in names]:
            return ordinal
    listed = ", ".join(names[-1] for names in shown if names)
    raise InputError(
        f"CUDA shows no GPU '{name}' to this process; "
        + (
            f"it shows {listed} (CUDA_VISIBLE_DEVICES hides others)"
            if listed
            else "it shows none: check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
        )
    )


def driver_cuda_version() -> tuple[int, int] | None:
    """Return the newest CUDA release that the driver runs, (major, minor); None without a driver.

    A driver without a GPU answers, too.
    """
    driver = _driver()
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _uuids(ordinal: int) -> tuple[str, ...]:
    """Return the UUID of a GPU, and then, where this is a MIG instance, its own."""
    driver = _started_driver()
    device = None if driver is None else _device(driver, ordinal)
    if driver is None or device is None:
        return ()
    found: list[uuid.UUID] = []
    # The older call gives the GPU's UUID, the newer one that of the MIG instance.
    for call in ("cuDeviceGetUuid", "cuDeviceGetUuid_v2"):
        raw = (ctypes.c_ubyte * _UUID_BYTES)()
        function = getattr(driver, call, None)  # drivers before CUDA 11.4 have no _v2
        if function is not None and function(raw, device) == 0:
            found.append(uuid.UUID(bytes=bytes(raw)))
    return tuple(f"{'GPU' if one == found[0] else 'MIG'}-{one}" for one in dict.fromkeys(found))


def _device(driver: ctypes.CDLL, ordinal: int) -> ctypes.c_int | None:
    device = ctypes.c_int()
    return device if driver.cuDeviceGet(ctypes.byref(device), ordinal) == 0 else None


def _started_driver() -> ctypes.CDLL | None:
    driver = _driver()
    return None if driver is None or driver.cuInit(0) != 0 else driver


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
