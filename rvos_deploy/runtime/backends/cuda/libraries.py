"""The libraries that a GPU is reached through: what is missing is said in one line."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from rvos_deploy.errors import BackendError

OLDEST_TENSORRT = 11
LEGACY_STREAM = 1
"""CUDA's default stream, by DLPack's number and by its own."""
INSTALL = "pip install 'rvos-deploy[tensorrt]'"
_NAMES = {
    "tensorrt": "tensorrt",
    "pycuda.driver": "pycuda",
    "cuda.bindings.driver": "cuda-bindings",
}


@dataclass(frozen=True)
class CudaLibraries:
    """``pycuda.driver``, and ``cuda.bindings.driver`` for what pycuda has not (CUDA graphs)."""

    pycuda: Any
    driver: Any


def import_tensorrt() -> tuple[Any, CudaLibraries]:
    """TensorRT and the two CUDA modules.

    Raises:
        BackendError: says which of them are missing or too old, and the command that mends it.
    """
    found = {module: _import(module) for module in _NAMES}
    missing = [_NAMES[module] for module, library in found.items() if library is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise BackendError(
            f"back end tensorrt: {', '.join(missing)} {verb} not installed; {INSTALL}"
            + (" (pycuda is compiled: CUDA's headers are needed)" if "pycuda" in missing else "")
        )
    trt: Any = found["tensorrt"]
    if int(trt.__version__.split(".")[0]) < OLDEST_TENSORRT:
        raise BackendError(
            f"tensorrt {trt.__version__} is installed, {OLDEST_TENSORRT} or newer is needed; "
            f"pip install --upgrade 'tensorrt>={OLDEST_TENSORRT}'"
        )
    return trt, CudaLibraries(found["pycuda.driver"], found["cuda.bindings.driver"])


def _import(module: str) -> Any | None:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        # Installed, but a library under it is not: nearly always the driver's libcuda.so.1.
        raise BackendError(
            f"{_NAMES[module]} is installed but cannot be loaded ({error}); back end tensorrt "
            "needs an NVIDIA GPU with its driver (check with nvidia-smi)"
        ) from None


def call(driver: Any, name: str, *arguments: Any) -> Any:
    """Call ``cuda.bindings.driver``; its one result (None where there is none).

    Raises:
        BackendError: with the driver's own name for what went wrong.
    """
    error, *results = getattr(driver, name)(*arguments)
    if int(error) != 0:
        raise BackendError(f"CUDA: {name} failed with {error.name}; check the GPU with nvidia-smi")
    return results[0] if results else None


def wait_for(driver: Any, waiting: int, awaited: int) -> None:
    """Let what is queued on a stream from here on wait for what another one has in its queue now.

    Args:
        driver: ``cuda.bindings.driver``, with the device's context current.
        waiting: handle of a stream; of ours or of another library.
        awaited: handle of the other.

    Raises:
        BackendError: CUDA refuses.
    """
    event = call(driver, "cuEventCreate", int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    try:
        call(driver, "cuEventRecord", event, driver.CUstream(awaited))
        call(driver, "cuStreamWaitEvent", driver.CUstream(waiting), event, 0)
    finally:
        # CUDA frees it once it has passed.
        call(driver, "cuEventDestroy", event)
