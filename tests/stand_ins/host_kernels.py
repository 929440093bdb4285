"""Run the runtime's kernels on the CPU: g++ compiles the same source through the plugin's shim."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rvos_deploy.engines.plugins.ms_deform_attn import host
from rvos_deploy.runtime.backends.cuda.kernels import SOURCE

FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing"]


def build(source: str, library: Path) -> None:
    """Compile a C++ file of this folder into a shared library; skip the test without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to build the kernels for the host")
    here = Path(__file__).parent
    folders = [here, SOURCE.parent, Path(host.__file__).parent]
    folders += host.include_folders(host.HOST_HEADERS)
    command = [compiler, *FLAGS, *(f"-I{folder}" for folder in folders)]
    subprocess.run([*command, str(here / source), "-o", str(library), "-ldl"], check=True)


def through_bindings(
    driver: str, script: Path, folder: Path, *arguments: Path, library: str = "libcuda.so.1"
) -> subprocess.CompletedProcess[str]:
    """Run a script whose real bindings load a C++ file of this folder in place of a library: of the
    CUDA driver, or of another one.

    Skips the test where the machine has a driver, which would be loaded too.
    """
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver of its own")
    build(driver, folder / library)
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@functools.cache
def host_library() -> ctypes.CDLL:
    """Build the library once a process."""
    with tempfile.TemporaryDirectory(prefix="rvos-") as folder:
        library = Path(folder) / "kernels.so"
        build("host_kernels.cpp", library)
        return ctypes.CDLL(str(library))


def launch_on_host(
    kernel: str, blocks: int, threads: int, values: tuple[int, ...], types: tuple[type, ...]
) -> None:
    """Run a kernel; pointers among ``values`` are addresses in this process."""
    arguments = [kind(value) for value, kind in zip(values, types, strict=True)]
    getattr(host_library(), f"host_{kernel}")(blocks, threads, *arguments)
