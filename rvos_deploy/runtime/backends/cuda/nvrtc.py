"""Compile CUDA C++ to PTX by NVRTC; neither nvcc, a driver nor a GPU is needed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.libraries import INSTALL


def compile_ptx(source: bytes, name: str, arch: int, options: Sequence[str] = ()) -> str:
    """Compile CUDA C++ to PTX.

    Args:
        source: the source text.
        name: the name of its file, for messages.
        arch: the virtual architecture, for example 80 for ``compute_80``. GPUs of this architecture
            and newer ones run the PTX.
        options: options of the compiler beside the architecture.

    Raises:
        BackendError: NVRTC is missing, does not know the architecture, or refuses the source.
    """
    nvrtc = load_nvrtc()
    known = supported_archs()
    if arch not in known:
        raise BackendError(
            f"NVRTC {version_text()} cannot compile for compute_{arch}; it needs one of "
            f"{', '.join(map(str, known))}: pip install --upgrade nvidia-cuda-nvrtc"
        )
    given = [option.encode() for option in (f"--gpu-architecture=compute_{arch}", *options)]
    result, program = nvrtc.nvrtcCreateProgram(source, name.encode(), 0, [], [])
    _require_success(nvrtc, result)
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise BackendError(
                f"NVRTC {version_text()} refused {name}: {_log(nvrtc, program)} (with "
                f"{' '.join(options)}); NVRTC and the CUDA headers must be of one release: "
                f"{INSTALL}"
            )
        result, size = nvrtc.nvrtcGetPTXSize(program)
        _require_success(nvrtc, result)
        ptx = bytearray(size)
        _require_success(nvrtc, *nvrtc.nvrtcGetPTX(program, ptx))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return ptx.rstrip(b"\0").decode()


def supported_archs() -> list[int]:
    """List the virtual architectures that the installed NVRTC compiles for.

    Raises:
        BackendError: NVRTC is missing.
    """
    nvrtc = load_nvrtc()
    result, architectures = nvrtc.nvrtcGetSupportedArchs()
    _require_success(nvrtc, result)
    return sorted(architectures)


def newest_arch(compute_capability: int) -> int:
    """Return the newest architecture that NVRTC and a GPU both support: 89 for compute capability
    8.9.

    Raises:
        BackendError: NVRTC is missing, or supports only newer architectures.
    """
    known = supported_archs()
    fitting = [arch for arch in known if arch <= compute_capability]
    if not fitting:
        raise BackendError(
            f"NVRTC {version_text()} compiles for compute_{known[0]} and newer, not for this GPU "
            f"({compute_capability / 10}); install the NVRTC of an older CUDA release"
        )
    return max(fitting)


def nvrtc_version() -> tuple[int, int]:
    """Return the major and minor version. Raises BackendError: NVRTC is missing."""
    nvrtc = load_nvrtc()
    result, major, minor = nvrtc.nvrtcVersion()
    _require_success(nvrtc, result)
    return int(major), int(minor)


def version_text() -> str:
    """Return the version as text: ``13.0``. Raises BackendError: NVRTC is missing."""
    return ".".join(map(str, nvrtc_version()))


@functools.cache
def load_nvrtc() -> ModuleType:
    """Import ``cuda.bindings.nvrtc`` with its library. Raises BackendError: NVRTC is missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise BackendError(
            f"NVRTC cannot be loaded ({str(error).splitlines()[0]}); {INSTALL}"
        ) from error
    module: ModuleType = nvrtc
    return module


class _Result(Protocol):
    """A value of the enum ``nvrtcResult``."""

    @property
    def name(self) -> str:
        """Its name."""


def _require_success(nvrtc: ModuleType, result: _Result) -> None:
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC failed with {result.name}; {INSTALL}")


def _log(nvrtc: ModuleType, program: object) -> str:
    result, size = nvrtc.nvrtcGetProgramLogSize(program)
    _require_success(nvrtc, result)
    log = bytearray(size)
    _require_success(nvrtc, *nvrtc.nvrtcGetProgramLog(program, log))
    lines = log.rstrip(b"\0").decode(errors="replace").strip().splitlines()
    return next((line for line in lines if "error" in line), "no log")
