"""Import TensorRT and the libraries that drive CUDA."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, cast

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.imports import import_library

if TYPE_CHECKING:
    from rvos_deploy.runtime.backends.cuda.driver import Driver

OLDEST_TENSORRT = (10, 3)
"""Older versions lack a name that engines are built or run with. JetPack 6.1 brings this one."""
INSTALL = "pip install 'rvos-deploy[tensorrt]'"
_BINDINGS, _PYCUDA = "cuda.bindings.driver", "pycuda.driver"
_NAMES = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    _PYCUDA: "pycuda",
    _BINDINGS: "cuda-bindings",
}


@dataclass(frozen=True)
class CudaLibraries:
    """The libraries that drive CUDA.

    Args:
        driver: memory, streams, events and contexts, by pycuda where it is installed, else by
            ``cuda.bindings``.
        bindings: ``cuda.bindings.driver``, for what pycuda lacks: CUDA graphs, and events of other
            libraries' streams.
        name: of the package that ``driver`` uses.
    """

    driver: Driver
    bindings: ModuleType
    name: str


def import_tensorrt(module: str = "tensorrt") -> tuple[ModuleType, CudaLibraries]:
    """Import TensorRT and the libraries that drive CUDA.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        BackendError: a module is missing or too old; names it, and the command that installs it.
    """
    trt, bindings = _import_all(module, _BINDINGS)
    check_tensorrt(trt)
    return trt, _cuda_libraries(bindings)


def check_tensorrt(trt: ModuleType) -> None:
    """Raise BackendError where ``tensorrt`` is too old; every ``tensorrt_rtx`` is new enough."""
    if trt.__name__ == "tensorrt" and tensorrt_version(trt) < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        raise BackendError(
            f"tensorrt {trt.__version__} is installed, {oldest} or newer is needed; "
            f"pip install --upgrade 'rvos-deploy[tensorrt]'"
        )


def tensorrt_version(trt: ModuleType) -> tuple[int, int]:
    """Return the major and the minor version."""
    major, minor = map(int, trt.__version__.split(".")[:2])
    return major, minor


def import_cuda() -> CudaLibraries:
    """Import the libraries that drive CUDA. Raises BackendError: as ``import_tensorrt``."""
    (bindings,) = _import_all(_BINDINGS)
    return _cuda_libraries(bindings)


def _cuda_libraries(bindings: ModuleType) -> CudaLibraries:
    """Choose pycuda where it is installed and works, else ``cuda.bindings``."""
    from rvos_deploy.runtime.backends.cuda.bindings_driver import BindingsDriver

    try:
        pycuda = _import(_PYCUDA)
    except BackendError as error:
        warnings.warn(f"cuda-bindings is used: {error}", RuntimeWarning, stacklevel=3)
        pycuda = None
    if pycuda is None:
        return CudaLibraries(BindingsDriver(bindings), bindings, _NAMES[_BINDINGS])
    return CudaLibraries(cast("Driver", pycuda), bindings, _NAMES[_PYCUDA])


def _import_all(*modules: str) -> list[ModuleType]:
    found = {module: _import(module) for module in modules}
    missing = [_NAMES[module] for module, library in found.items() if library is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        target = "tensorrt-rtx" if "tensorrt_rtx" in modules else "tensorrt"
        raise BackendError(
            f"back end {target}: {', '.join(missing)} {verb} not installed; "
            f"pip install 'rvos-deploy[{target}]'"
        )
    return [library for library in found.values() if library is not None]


def _import(module: str) -> ModuleType | None:
    return import_library(module, _NAMES[module], advice="check the GPU's driver with nvidia-smi")
