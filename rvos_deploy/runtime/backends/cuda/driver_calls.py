"""Call functions of ``cuda.bindings.driver``."""

from __future__ import annotations

from types import ModuleType
from typing import Protocol

from rvos_deploy.errors import BackendError, one_line

LEGACY_DEFAULT_STREAM = 1
"""The handle of CUDA's legacy default stream; DLPack uses the same number."""


class Handle(Protocol):
    """A handle of ``cuda.bindings.driver``, or a number."""

    def __int__(self) -> int:
        """Return the number."""


def call(driver: ModuleType, name: str, *arguments: object) -> Handle:
    """Call a function of ``cuda.bindings.driver`` and return its result, or 0 where it has none.

    Raises:
        BackendError: the function failed; gives the driver's name of the error.
    """
    try:
        error, *results = getattr(driver, name)(*arguments)
    except RuntimeError as missing:
        # cuda.bindings load the driver's library at the first call, and look functions up there.
        raise BackendError(
            f"CUDA: {name} cannot be called ({one_line(missing)}); check the GPU's driver with "
            "nvidia-smi"
        ) from None
    if int(error) != 0:
        raise BackendError(f"CUDA: {name} failed with {error.name}; check the GPU with nvidia-smi")
    result: Handle = results[0] if results else 0
    return result


def wait_for(driver: ModuleType, waiting: int, awaited: int) -> None:
    """Make work queued on one stream from now on wait for the work queued on another one until now.

    Args:
        driver: ``cuda.bindings.driver``, with the device's context current.
        waiting: the handle of the stream that waits, of this package or of another library.
        awaited: the handle of the other stream.

    Raises:
        BackendError: CUDA failed.
    """
    event = call(driver, "cuEventCreate", int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    try:
        call(driver, "cuEventRecord", event, driver.CUstream(awaited))
        call(driver, "cuStreamWaitEvent", driver.CUstream(waiting), event, 0)
    finally:
        # CUDA keeps the event until it has passed.
        call(driver, "cuEventDestroy", event)
