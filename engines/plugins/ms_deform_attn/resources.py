"""Assemble the kernel by ptxas, which says how many registers it has, and what it spills.

Needs ``ptxas``, from a CUDA toolkit or from the wheel ``nvidia-cuda-nvcc``, and no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx
from rvos_deploy.engines.plugins.ms_deform_attn.spec import KernelSpec, PluginError

ARCHS = (75, 80, 86, 89, 90, 100, 120)
"""The architectures that are checked; NVRTC may know more."""


@dataclass(frozen=True)
class Resources:
    """One assembled kernel and its resources.

    Args:
        registers: of one thread.
        spill_bytes: stored to and loaded from local memory, together.
        cubin: the machine code.
    """

    registers: int
    spill_bytes: int
    cubin: bytes = field(repr=False)


def find_ptxas() -> str | None:
    """Return the assembler's path, or None."""
    return nvidia_tool("ptxas")


def nvidia_tool(name: str) -> str | None:
    """Return the path of a tool of CUDA's, on the PATH or in NVIDIA's wheels, or None."""
    if on_path := shutil.which(name):
        return on_path
    try:
        import nvidia
    except ImportError:
        return None
    wheels = (wheel for root in nvidia.__path__ for wheel in Path(root).glob(f"*/bin/{name}"))
    return next((str(wheel) for wheel in wheels), None)


def assemble(spec: KernelSpec) -> Resources:
    """Compile and assemble one kernel.

    Raises:
        PluginError: ptxas is missing, or refuses the PTX.
    """
    ptxas = find_ptxas()
    if ptxas is None:
        raise PluginError("ptxas is missing, which counts registers; pip install nvidia-cuda-nvcc")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(compile_ptx(spec))
        options = ["-v", f"-arch=sm_{spec.arch}", "-o", str(target)]
        done = subprocess.run(
            [ptxas, *options, str(source)], capture_output=True, text=True, check=False
        )
        cubin = target.read_bytes() if target.exists() else b""
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    if done.returncode or registers is None or len(spills) != 2:
        raise PluginError(
            f"{ptxas} refused the PTX of {spec} ({done.stderr.strip()[-200:]}); it must be as new "
            "as NVRTC: pip install --upgrade nvidia-cuda-nvcc"
        )
    return Resources(int(registers[1]), sum(map(int, spills)), cubin)
