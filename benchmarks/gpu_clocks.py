"""Watch a GPU's clock, power and throttling while something runs, by NVML.

NVML finds the GPU by its UUID, because its numbers are not CUDA's. ``nvidia-ml-py`` binds NVML.
NOT RUN on a GPU. The tests run the real ``nvidia-ml-py`` over a C library in place of NVML.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import ModuleType
from typing import Any

from rvos_deploy.errors import BackendError, one_line

INTERVAL = 0.02
"""Seconds between two readings. NVML updates most values about as often."""

LOCK_CLOCKS = (
    "sudo nvidia-smi -i UUID -lgc MHZ (and -rgc to undo; nvidia-smi -q -d SUPPORTED_CLOCKS lists "
    "the frequencies)"
)
"""Fixes the SM clock, so that all contenders and rounds run at the same one."""

STEADY = 0.02
"""The SM clock may vary so much, as a share of its median, before a run is marked."""

_REASONS = {
    "ApplicationsClocksSetting": "clocks were set",
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "SyncBoost": "sync boost",
    "SwThermalSlowdown": "temperature (software)",
    "HwThermalSlowdown": "temperature (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
    "DisplayClockSetting": "display clocks",
}
"""NVML's reasons for a lower clock, but for an idle GPU."""


@dataclass(frozen=True)
class Reading:
    """The state of a GPU at one moment.

    Args:
        sm_mhz: the clock of its multiprocessors.
        watts: its power; None where the card does not tell.
        celsius: its temperature; None where the card does not tell.
        throttled: why the clock is lower than it could be.
    """

    sm_mhz: int
    watts: float | None
    celsius: int | None
    throttled: frozenset[str]


Read = Callable[[], Reading]


def clock_reader(uuid: str | None) -> Read:
    """Return a function that reads the state of a GPU.

    Args:
        uuid: ``GPU-...``, as ``runtime.backends.gpu.gpu_uuid`` gives it.

    Raises:
        BackendError: ``nvidia-ml-py``, NVML or the GPU is missing.
    """
    if uuid is None:
        raise BackendError("the driver does not tell the GPU's UUID, by which NVML finds it")
    try:
        import pynvml
    except ImportError:
        raise BackendError("nvidia-ml-py is not installed; pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError as error:
        raise BackendError(f"NVML finds no GPU {uuid}: {one_line(error)}") from None
    return lambda: _read(pynvml, handle)


def _read(nvml: ModuleType, handle: object) -> Reading:
    try:
        return Reading(
            nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            _if_told(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            _if_told(
                nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            _throttled(nvml, handle),
        )
    except nvml.NVMLError as error:
        raise BackendError(f"NVML cannot read the GPU's clock: {one_line(error)}") from None


def _throttled(nvml: ModuleType, handle: object) -> frozenset[str]:
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nvml.NVMLError_FunctionNotFound:  # drivers before 535
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return frozenset(
        text
        for name, text in _REASONS.items()
        if bits & getattr(nvml, f"nvmlClocksEventReason{name}")
    )


def _if_told(nvml: ModuleType, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except nvml.NVMLError_NotSupported:
        return None


@contextmanager
def watching(read: Read | None, interval: float = INTERVAL) -> Iterator[dict[str, Any]]:
    """Yield a record that gets the GPU's clock, power and throttling during the block.

    The readings come from a thread. A failed reading ends them, and never the block: the record
    then has a ``reason``.

    Args:
        read: from :func:`clock_reader`; None records nothing.
        interval: seconds between two readings.
    """
    record: dict[str, Any] = {}
    if read is None:
        yield record
        return
    readings: list[Reading] = []
    ended = threading.Event()

    def watch() -> None:
        try:
            readings.append(read())
            while not ended.wait(interval):
                readings.append(read())
        except BackendError as error:
            record["reason"] = str(error)

    thread = threading.Thread(target=watch, name="clocks", daemon=True)
    thread.start()
    try:
        yield record
    finally:
        ended.set()
        thread.join()
        if readings:
            record |= summarise_readings(readings)


def summarise_readings(readings: list[Reading]) -> dict[str, Any]:
    """Return least, median and greatest SM clock and power, and all reasons, ready for JSON."""
    clocks = [one.sm_mhz for one in readings]
    watts = [one.watts for one in readings if one.watts is not None]
    celsius = [one.celsius for one in readings if one.celsius is not None]
    return {
        "readings": len(readings),
        "sm_mhz": _range(clocks),
        "steady": max(clocks) - min(clocks) <= STEADY * median(clocks),
        "watts": _range(watts) if watts else None,
        "celsius": max(celsius) if celsius else None,
        "throttled": sorted(frozenset().union(*(one.throttled for one in readings))),
    }


def _range(values: list[Any]) -> dict[str, float]:
    return {"min": min(values), "p50": median(values), "max": max(values)}
