"""Describe the two TensorRTs: how to import each, what it can do, and what to say where it is
missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.libraries import check_tensorrt, tensorrt_version
from rvos_deploy.runtime.backends.gpu import Gpu, find_gpu
from rvos_deploy.runtime.backends.imports import import_library


@dataclass(frozen=True)
class Target:
    """One TensorRT.

    Args:
        name: the value of ``--target``.
        module: the Python module.
        extra: the extra of this package that installs it.
        plugins: its newer versions take our plugin (see :func:`takes_plugin`).
        needs_gpu: the builder times kernels on the GPU. TensorRT-RTX compiles kernels when the
            engine is loaded, so it needs none.
    """

    name: str
    module: str
    extra: str
    plugins: bool
    needs_gpu: bool


TENSORRT = Target("tensorrt", "tensorrt", "tensorrt", plugins=True, needs_gpu=True)
TENSORRT_RTX = Target(
    "tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx", plugins=False, needs_gpu=False
)
TARGETS = {target.name: target for target in (TENSORRT, TENSORRT_RTX)}
OLDEST_WITH_PLUGINS = (10, 9)
"""The first TensorRT with ahead-of-time plugins in Python."""


def takes_plugin(target: Target, library: Any) -> bool:
    """Tell whether our plugin goes into the engines; otherwise the function body does."""
    return target.plugins and tensorrt_version(library) >= OLDEST_WITH_PLUGINS


def open_target(target: Target, ordinal: int = 0) -> tuple[Any, Gpu | None]:
    """Return the imported library and the GPU, or None where there is none and none is needed.

    Args:
        target: the TensorRT.
        ordinal: the number of the GPU among those that CUDA shows.

    Raises:
        BackendError: the library or the GPU is missing, or the library is too old; one line that
            says which, and the command that fixes it.
    """
    library, gpu = import_library(target.module, target.name), find_gpu(ordinal)
    lacks_gpu = target.needs_gpu and gpu is None
    install = f"pip install 'rvos-deploy[{target.extra}]'"
    elsewhere = (
        "build on the machine with the GPU that will run the engine, or without one: "
        "rvos-deploy build-engine BUNDLE --target tensorrt-rtx"
    )
    if library is None and lacks_gpu:
        raise BackendError(
            f"{target.module} is not installed, and there is no NVIDIA GPU with a driver here; "
            f"on the machine with the GPU: {install} (without a GPU, --target tensorrt-rtx builds)"
        )
    if library is None:
        raise BackendError(f"{target.module} is not installed; {install}")
    if lacks_gpu:
        raise BackendError(
            f"{target.module} {library.__version__} is installed, but there is no NVIDIA GPU with "
            f"a driver here, and its builder times kernels on one; {elsewhere}"
        )
    check_tensorrt(library)
    return library, gpu
