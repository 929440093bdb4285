"""Describe the two TensorRTs: how to import each, what it can do, and what to say where it is
missing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from rvos_deploy.engines.gpu import Gpu, find_gpu
from rvos_deploy.errors import BackendError


@dataclass(frozen=True)
class Target:
    """One TensorRT.

    Args:
        name: the value of ``--target``.
        module: the Python module.
        extra: the extra of this package that installs it.
        plugins: supports our plugin; otherwise it parses the function body in the ONNX.
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
OLDEST_MAJOR = 11
"""Older versions type networks weakly, so the precision would not be that of the ONNX."""


def open_target(target: Target) -> tuple[Any, Gpu | None]:
    """Return the imported library and the GPU, or None where there is none and none is needed.

    Raises:
        BackendError: the library or the GPU is missing, or the library is too old; one line that
            says which, and the command that fixes it.
    """
    library, gpu = _import(target), find_gpu()
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
    if target is TENSORRT and int(library.__version__.split(".")[0]) < OLDEST_MAJOR:
        raise BackendError(
            f"tensorrt {library.__version__} is installed, 11 or newer is needed; "
            f"pip install --upgrade 'tensorrt>={OLDEST_MAJOR}'"
        )
    return library, gpu


def _import(target: Target) -> Any | None:
    try:
        return importlib.import_module(target.module)
    except ImportError:
        return None
