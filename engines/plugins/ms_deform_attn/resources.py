"""Count registers and spills of the kernel by ptxas; ``python -m`` this module prints README's
table.

Needs ``ptxas``, from a CUDA toolkit or from the wheel ``nvidia-cuda-nvcc``, and no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    ITEM_BYTES,
    TACTICS,
    TYPES,
    DType,
    KernelSpec,
    PluginError,
    Tactic,
)

ARCHS = (75, 80, 86, 89, 90, 100, 120)
"""The architectures that are checked; NVRTC may know more."""


@dataclass(frozen=True)
class Resources:
    """The resources of one kernel.

    Args:
        registers: of one thread.
        spill_bytes: stored to and loaded from local memory, together.
    """

    registers: int
    spill_bytes: int


def find_ptxas() -> str | None:
    """Return the assembler's path, or None."""
    if on_path := shutil.which("ptxas"):
        return on_path
    try:
        import nvidia
    except ImportError:
        return None
    wheels = (wheel for root in nvidia.__path__ for wheel in Path(root).glob("*/bin/ptxas"))
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
        source = Path(folder) / "kernel.ptx"
        source.write_text(compile_ptx(spec))
        options = ["-v", f"-arch=sm_{spec.arch}", "-o", f"{folder}/kernel.cubin"]
        done = subprocess.run(
            [ptxas, *options, str(source)], capture_output=True, text=True, check=False
        )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    if done.returncode or registers is None or len(spills) != 2:
        raise PluginError(
            f"{ptxas} refused the PTX of {spec} ({done.stderr.strip()[-200:]}); it must be as new "
            "as NVRTC: pip install --upgrade nvidia-cuda-nvcc"
        )
    return Resources(int(registers[1]), sum(map(int, spills)))


def main() -> None:
    """Print a table of the most registers over all types of offsets and logits, and of spills."""
    print("| tactic (threads, points at once) | values |", *(f"sm_{a} |" for a in ARCHS))
    print("|---|---|" + "---|" * len(ARCHS))
    for number, tactic in TACTICS.items():
        name = f"{number} ({tactic.threads}, {tactic.unroll}{', crowded' * tactic.crowded})"
        for value in ITEM_BYTES:
            cells = [_cell(arch, value, tactic) for arch in ARCHS]
            print(f"| {name} | {value} | {' | '.join(cells)} |")


def _cell(arch: int, value: DType, tactic: Tactic) -> str:
    group = [types for types in TYPES if types[0] == value]
    found = [assemble(KernelSpec(arch, *types, tactic=tactic)) for types in group]
    spilled = max(resources.spill_bytes for resources in found)
    registers = max(resources.registers for resources in found)
    return f"{registers} (spills {spilled} B)" if spilled else str(registers)


if __name__ == "__main__":
    main()
