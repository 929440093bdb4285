"""Run by a test in a process of its own: clocks through the real nvidia-ml-py."""

from __future__ import annotations

import pynvml
import pytest

from rvos_deploy.benchmarks.gpu_clocks import Reading, clock_reader
from rvos_deploy.errors import BackendError

UUID = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"

with pytest.raises(BackendError, match=r"^NVML finds no GPU GPU-1: Not Found$"):
    clock_reader("GPU-1")
read = clock_reader(UUID)
reasons = frozenset(("power limit", "temperature (hardware)"))
assert read() == Reading(1800, 71.5, None, reasons)
assert read() == Reading(1700, 71.5, None, reasons)


def missing(handle: object) -> int:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


# Drivers before 535 have the older name only.
pynvml.nvmlDeviceGetCurrentClocksEventReasons = missing
assert read() == Reading(1600, 71.5, None, frozenset(("power limit",)))
print("clocks arrived")
