"""Import TensorRT, pycuda and cuda-bindings; call the CUDA driver."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from rvos_deploy.errors import BackendError

OLDEST_TENSORRT = 11
LEGACY_DEFAULT_STREAM = 1
"""The handle of CUDA's legacy default stream; DLPack uses the same number."""
_CUDA = ("pycuda.driver", "cuda.bindings.driver")
INSTALL = "pip install 'rvos-deploy[tensorrt]'"
_NAMES = {
    "tensorrt": "tensorrt",
    "pycuda.driver": "pycuda",
    "cuda.bindings.driver": "cuda-bindings",
}


@dataclass(frozen=True)
class CudaLibraries:
    """The two CUDA modules: ``pycuda.driver``, and ``cuda.bindings.driver`` for what pycuda lacks.

    pycuda has no CUDA graphs, and no events of other libraries' streams. Neither has types.
    """

    pycuda: ModuleType
    driver: ModuleType


class Handle(Protocol):
    """A handle of ``cuda.bindings.driver``, or a number."""

    def __int__(self) -> int:
        """Return the number."""


def import_tensorrt() -> tuple[ModuleType, CudaLibraries]:
    """Import TensorRT and the two CUDA modules.

    Raises:
        BackendError: a module is missing or too old; names it, and the command that installs it.
    """
    found = _import_all("tensorrt", *_CUDA)
    trt = found["tensorrt"]
    if int(trt.__version__.split(".")[0]) < OLDEST_TENSORRT:
        raise BackendError(
            f"tensorrt {trt.__version__} is installed, {OLDEST_TENSORRT} or newer is needed; "
            f"pip install --upgrade 'tensorrt>={OLDEST_TENSORRT}'"
        )
    return trt, CudaLibraries(*(found[module] for module in _CUDA))


def import_cuda() -> CudaLibraries:
    """Import the two CUDA modules. Raises BackendError: as ``import_tensorrt``."""
    found = _import_all(*_CUDA)
    return CudaLibraries(*(found[module] for module in _CUDA))


def _import_all(*modules: str) -> dict[str, ModuleType]:
    tried = {module: _import(module) for module in modules}
    found = {module: library for module, library in tried.items() if library is not None}
    missing = [_NAMES[module] for module in modules if module not in found]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise BackendError(
            f"back end tensorrt: {', '.join(missing)} {verb} not installed; {INSTALL}"
            + (" (pycuda is compiled: CUDA's headers are needed)" if "pycuda" in missing else "")
        )
    return found


def _import(module: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        # The package is installed, but a library under it is missing: nearly always libcuda.so.1.
        raise BackendError(
            f"{_NAMES[module]} is installed but cannot be loaded ({error}); back end tensorrt "
            "needs an NVIDIA GPU with its driver (check with nvidia-smi)"
        ) from None


def call(driver: ModuleType, name: str, *arguments: object) -> Handle:
    """Call a function of ``cuda.bindings.driver`` and return its result, or 0 where it has none.

    Raises:
        BackendError: the function failed; gives the driver's name of the error.
    """
    error, *results = getattr(driver, name)(*arguments)
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
