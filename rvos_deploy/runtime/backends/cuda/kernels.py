"""Our own kernels, ``kernels.cu``: compiled for the card that is there, loaded, launched.

Compiled when they are first needed, by NVRTC, which ``rvos-deploy[tensorrt]`` brings: a tenth of a
second, and nothing to build before, to hash or to keep beside the engines. Without NVRTC, or when
the driver refuses its PTX, the host does their work.

NOT RUN on a GPU. The PTX is made by the real NVRTC; the arithmetic was run on the host, where g++
compiles the same source (tests/backends).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvos_deploy.runtime.backends.cuda import nvrtc
from rvos_deploy.runtime.backends.cuda.libraries import call

SOURCE = Path(__file__).with_name("kernels.cu")
OPTIONS = ("--std=c++17", "--fmad=false")
KERNELS = (
    "rvos_pack_masks",
    "rvos_show_masks",
    "rvos_flag_rows",
    "rvos_fit_frame",
    "rvos_stack_vectors",
    "rvos_stack_bytes",
)
_THREADS = 256
"""Of a block. No kernel shares anything among its threads."""

Argument = tuple[int, type[ctypes.c_void_p] | type[ctypes.c_int] | type[ctypes.c_longlong]]


def pointer(address: int) -> Argument:
    """An argument of a kernel: where something lies on the device."""
    return address, ctypes.c_void_p


def number(value: int) -> Argument:
    """An argument of a kernel: an int of 32 bits."""
    return value, ctypes.c_int


@functools.cache
def kernel_ptx(arch: int) -> str:
    """PTX of all kernels for ``compute_{arch}`` and newer cards.

    Raises:
        BackendError: NVRTC is missing, or cannot compile for it.
    """
    return nvrtc.compile_ptx(SOURCE.read_bytes(), SOURCE.name, arch, OPTIONS)


class Kernels:
    """The kernels, loaded into the current context; :meth:`free` them in it."""

    def __init__(self, driver: Any, compute_capability: str) -> None:
        """``driver``: ``cuda.bindings.driver``; ``compute_capability``: of the card, as 8.9.

        Raises:
            BackendError: they cannot be compiled or loaded; says why.
        """
        major, minor = map(int, compute_capability.split("."))
        ptx = kernel_ptx(nvrtc.newest_arch(10 * major + minor))
        self._driver = driver
        # The driver reads up to the first zero byte.
        self._module = call(driver, "cuModuleLoadData", ptx.encode() + b"\0")
        self._functions = {
            name: call(driver, "cuModuleGetFunction", self._module, name.encode())
            for name in KERNELS
        }

    def launch(self, name: str, threads: int, arguments: Sequence[Argument], stream: int) -> None:
        """Queue a kernel.

        Args:
            name: one of ``KERNELS``.
            threads: how many are needed, at least one.
            arguments: the kernel's, each with its C type.
            stream: its handle.

        Raises:
            BackendError: the driver refuses.
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
        """Unload them; nothing of them may run any more."""
        call(self._driver, "cuModuleUnload", self._module)
