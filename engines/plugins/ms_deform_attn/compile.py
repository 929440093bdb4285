"""Compile the kernel to PTX by NVRTC; neither nvcc, a driver nor a GPU is needed.

NVRTC has the vector types built in. It needs only ``cuda_fp16.h`` and ``cuda_bf16.h``, from the
wheel ``nvidia-cuda-runtime`` or from a CUDA toolkit.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    TACTICS,
    DType,
    KernelSpec,
    PluginError,
)
from rvos_deploy.runtime.backends.cuda import nvrtc
from rvos_deploy.runtime.backends.cuda.libraries import INSTALL

SOURCE = Path(__file__).with_name("kernel.cu")
NVRTC_HEADERS = ("cuda_fp16.h", "cuda_bf16.h")
_CUDA_TYPES: dict[DType, str] = {"fp32": "float", "fp16": "__half", "bf16": "__nv_bfloat16"}


def kernel_hash() -> str:
    """Return 12 hexadecimal digits of a hash of the kernel's source and its tactics."""
    return hashlib.sha256(SOURCE.read_bytes() + repr(TACTICS).encode()).hexdigest()[:12]


@functools.cache
def compile_ptx(spec: KernelSpec) -> str:
    """Compile the kernel ``spec.KERNEL_NAME`` to PTX, once per process and spec.

    Raises:
        PluginError: the headers are missing.
        BackendError: NVRTC is missing, does not know the architecture, or refuses the source.
    """
    return nvrtc.compile_ptx(SOURCE.read_bytes(), SOURCE.name, spec.arch, nvrtc_options(spec))


def nvrtc_options(spec: KernelSpec) -> list[str]:
    """Return the compiler's options without the architecture."""
    return [
        "--std=c++17",
        # The kernel writes every fmaf itself, so that the host build rounds in the same places.
        "--fmad=false",
        f"-DRVOS_VALUE={_CUDA_TYPES[spec.value]}",
        f"-DRVOS_OFFSETS={_CUDA_TYPES[spec.offsets]}",
        f"-DRVOS_LOGITS={_CUDA_TYPES[spec.logits]}",
        f"-DRVOS_LAUNCH_BOUNDS={spec.tactic.launch_bounds}",
        f"-DRVOS_VECTORS={spec.tactic.vectors}",
        *(f"-DRVOS_{name.upper()}={size}" for name, size in asdict(spec.sizes).items()),
        *(f"--include-path={folder}" for folder in include_folders(NVRTC_HEADERS)),
    ]


def include_folders(headers: tuple[str, ...]) -> list[Path]:
    """Return the folders that hold the CUDA headers, in the pip wheels, else in a toolkit.

    Raises:
        PluginError: no folder holds a header.
    """
    found: list[Path] = []
    candidates = list(_include_candidates())
    for header in headers:
        folder = next((folder for folder in candidates if (folder / header).is_file()), None)
        if folder is None:
            raise PluginError(
                f"the CUDA header {header} is in none of "
                f"{', '.join(map(str, candidates)) or 'the site-packages'}; {INSTALL}, or set "
                "CUDA_HOME to a CUDA toolkit"
            )
        if folder not in found:
            found.append(folder)
    return found


def _include_candidates() -> Iterator[Path]:
    try:
        import nvidia  # a namespace package, over all the wheels of NVIDIA
    except ImportError:
        pass
    else:
        for site in nvidia.__path__:
            yield from sorted(Path(site).glob("cu[0-9]*/include"), reverse=True)
            # The wheels of CUDA 12.
            yield from sorted(Path(site).glob("cuda_*/include"))
    toolkits = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    for toolkit in filter(None, toolkits):
        yield from (Path(toolkit) / "include", Path(toolkit) / "include/cccl")


def device_arch(ordinal: int = 0) -> int:
    """Return the newest architecture that the GPU and the installed NVRTC support. NOT RUN: no GPU.

    Raises:
        PluginError: there is no driver or no GPU, or the driver is older than NVRTC and could not
            load its PTX.
        BackendError: NVRTC is missing.
    """
    version = nvrtc.nvrtc_version()
    try:
        from cuda.bindings import driver

        attribute = driver.CUdevice_attribute
        (result,) = driver.cuInit(0)
        _check_driver(driver, result)
        newest = _check_driver(driver, *driver.cuDriverGetVersion())
        device = _check_driver(driver, *driver.cuDeviceGet(ordinal))
        major, minor = (
            _check_driver(driver, *driver.cuDeviceGetAttribute(what, device))
            for what in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
    except (ImportError, RuntimeError, OSError) as error:
        raise PluginError(
            f"the GPU's architecture cannot be read ({error}); engines are built on a machine with "
            "an NVIDIA GPU and its driver, or give register_plugin(arch=...)"
        ) from error
    if version > (newest // 1000, newest % 1000 // 10):
        cuda = f"{newest // 1000}.{newest % 1000 // 10}"
        fitting = "rvos-deploy[tensorrt-cu12]" if newest < 13000 else f"nvidia-cuda-nvrtc=={cuda}.*"
        raise PluginError(
            f"NVRTC {nvrtc.version_text()} is newer than the driver, which is for CUDA {cuda} and "
            f"cannot load its PTX; pip install '{fitting}', or update the driver"
        )
    return nvrtc.newest_arch(10 * major + minor)


def _check_driver(driver: Any, result: Any, *values: Any) -> Any:
    if result != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(result.name)
    return values[0] if values else None
