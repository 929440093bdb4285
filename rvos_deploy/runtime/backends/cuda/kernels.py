"""Compile, load and launch this package's kernels (``kernels.cu``).

NVRTC, which ``rvos-deploy[tensorrt]`` installs, compiles the kernels for the GPU at hand when they
are first needed. That takes a tenth of a second, and there is nothing to build before, to hash or
to keep beside the engines. Without NVRTC, or when the driver refuses the PTX, the host does the
work.

NOT RUN on a GPU. The real NVRTC makes the PTX in the tests, and g++ compiles the same source for
the host, where the arithmetic was run (tests/backends).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rvos_deploy.runtime.backends.cuda import nvrtc
from rvos_deploy.runtime.backends.cuda.driver_calls import call

SOURCE = Path(__file__).with_name("kernels.cu")
OPTIONS = ("--std=c++17", "--fmad=false")
KERNELS = (
    "rvos_pack_masks",
    "rvos_upsample_masks",
    "rvos_flag_rows",
    "rvos_preprocess",
    "rvos_copy_vectors",
    "rvos_copy_bytes",
)
_THREADS = 256
"""Threads of a block. No kernel shares memory among its threads."""

Argument = tuple[int, type[ctypes.c_void_p] | type[ctypes.c_int] | type[ctypes.c_longlong]]


def pointer(address: int) -> Argument:
    """Return a kernel argument: a device address."""
    return address, ctypes.c_void_p


def number(value: int) -> Argument:
    """Return a kernel argument: a 32-bit integer."""
    return value, ctypes.c_int


@functools.cache
def kernel_ptx(arch: int) -> str:
    """Compile all kernels to PTX for ``compute_{arch}`` and newer GPUs.

    Raises:
        BackendError: NVRTC is missing, or cannot compile for this architecture.
    """
    return nvrtc.compile_ptx(SOURCE.read_bytes(), SOURCE.name, arch, OPTIONS)


class Kernels:
    """The kernels, loaded into the context that is current. Free them in the same context."""

    def __init__(self, driver: ModuleType, compute_capability: str) -> None:
        """Compile and load the kernels.

        Args:
            driver: ``cuda.bindings.driver``.
            compute_capability: of the GPU, for example "8.9".

        Raises:
            BackendError: the kernels cannot be compiled or loaded; says why.
        """
        major, minor = map(int, compute_capability.split("."))
        ptx = kernel_ptx(nvrtc.newest_arch(10 * major + minor))
        self._driver = driver
        # The driver reads the PTX up to the first zero byte.
        self._module = call(driver, "cuModuleLoadData", ptx.encode() + b"\0")
        self._functions = {
            name: call(driver, "cuModuleGetFunction", self._module, name.encode())
            for name in KERNELS
        }

    def launch(self, name: str, threads: int, arguments: Sequence[Argument], stream: int) -> None:
        """Queue a kernel.

        Args:
            name: one of ``KERNELS``.
            threads: how many threads are needed, at least one.
            arguments: the kernel's arguments, each with its C type.
            stream: the handle of the stream.

        Raises:
            BackendError: the driver refuses the launch.
        """
        values = tuple(value for value, _ in arguments)
        types = tuple(kind for _, kind in arguments)
        blocks = -(-threads // _THREADS)
        call(
            self._driver,
            "cuLaunchKernel",
            self._functions[name],
            *(blocks, 1, 1),
            *(_THREADS, 1, 1),
            0,
            self._driver.CUstream(stream),
            (values, types),
            0,
        )

    def free(self) -> None:
        """Unload the kernels; none of them may be queued or running."""
        call(self._driver, "cuModuleUnload", self._module)
