"""Count the instructions of a kernel in its disassembly (SASS), by kind; no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rvos_deploy.engines.plugins.ms_deform_attn.resources import nvidia_tool
from rvos_deploy.errors import InputError

KINDS: dict[str, str] = {
    "multiply-add": r"FFMA",
    "half": r"H(ADD2|MUL2|FMA2|MNMX2)\b",
    "load of values": r"LDG\.\S*128",
    "other load": r"LDG|LDC|ULDC|LDS",
    "store": r"STG|STS",
    "local memory": r"LDL|STL",
    "shuffle": r"SHFL",
    "special function": r"MUFU|FRND|F2I|I2F\b",
    "float": r"F(ADD|MUL|MNMX|SEL|SETP|SET|CHK|SWZADD)\b",
    "branch": r"BRA|BSSY|BSYNC|EXIT|CALL|RET|WARPSYNC|BREAK|JMP",
    "move": r"MOV|UMOV|CS2R|S2R|S2UR|IMAD\.MOV|SEL|R2UR",
    "integer": r"U?(IADD3|IMAD|LEA|SHF|LOP3|ISETP|PLOP3|IMNMX|VIMNMX|PRMT|IABS|SGXT|SEL)|VIADD|I2FP"
    r"|VIADDMNMX",
}
"""Kinds by the pattern of their opcodes; the first that matches counts. ``half`` also holds the
conversions of fp16 to fp32, ``integer`` those of bf16."""
OTHER = "other"

_INSTRUCTION = re.compile(
    r"^\s+/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:\{\s*)?(?P<guard>@!?U?P\w+\s+)?"
    r"(?P<opcode>[A-Z][A-Z0-9_.]*)(?P<operands>[^;]*);"
)
_LABEL = re.compile(r"^(\.L_x_\d+):")
_REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction: whether it has a guard (``@P0``), its opcode and its operands."""

    guarded: bool
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        """The kind, of :data:`KINDS`."""
        for kind, pattern in KINDS.items():
            if re.match(pattern, self.opcode):
                return kind
        return OTHER

    @property
    def registers(self) -> list[int]:
        """The numbers of the registers, the destination first."""
        return [int(number) for number in _REGISTER.findall(self.operands)]


def find_nvdisasm() -> str | None:
    """Return the disassembler's path, or None. Triton's wheel brings one, and PyTorch Triton."""
    if found := nvidia_tool("nvdisasm"):
        return found
    triton = find_spec("triton")
    folders = list(triton.submodule_search_locations or ()) if triton else []
    candidates = (Path(folder) / "backends/nvidia/bin/nvdisasm" for folder in folders)
    return next((str(path) for path in candidates if path.is_file()), None)


def disassemble(cubin: bytes) -> str:
    """Return the SASS of a cubin.

    Raises:
        InputError: nvdisasm is missing, or refuses the cubin.
    """
    tool = find_nvdisasm()
    if tool is None:
        raise InputError(
            "nvdisasm is missing, which shows instructions; pip install nvidia-cuda-nvdisasm"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([tool, "-c", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{tool} refused the kernel ({done.stderr.strip()[-200:]}); it must be as new as "
            "ptxas: pip install --upgrade nvidia-cuda-nvdisasm"
        )
    return done.stdout


def instructions(sass: str) -> list[Instruction]:
    """Return the instructions that a thread runs, in order, up to the kernel's end.

    What follows the last EXIT is left out: filling, and the subroutine of a division that no thread
    of this kernel calls.

    Raises:
        InputError: there is a loop, so that these are not the instructions that run.
    """
    found: list[Instruction] = []
    labels: set[str] = set()
    ends: list[int] = []
    loops: list[int] = []
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels.add(label[1])
        elif match := _INSTRUCTION.match(line):
            one = Instruction(bool(match["guard"]), match["opcode"], match["operands"])
            if one.opcode == "BRA" and any(f"({name})" in one.operands for name in labels):
                loops.append(len(found))
            found.append(one)
            if one.opcode == "EXIT":
                ends.append(len(found))
    if not ends:
        raise InputError("the disassembly has no EXIT; it must be that of one kernel")
    if loops and loops[0] < ends[-1]:
        raise InputError(
            f"instruction {loops[0]} branches back: the kernel has a loop, whose instructions run "
            "more often than they stand there"
        )
    return found[: ends[-1]]


def count_kinds(found: list[Instruction]) -> dict[str, int]:
    """Return how many instructions of each kind there are, the most frequent kind first."""
    return dict(Counter(one.kind for one in found).most_common())


def loads_in_flight(found: list[Instruction]) -> float:
    """Return how many 16-byte loads are under way, the mean over the moments when one is issued.

    A load is under way from its issue to the first instruction that names one of its registers.
    """
    waiting: list[set[int]] = []
    counts: list[int] = []
    for one in found:
        named = set(one.registers)
        if re.match(KINDS["load of values"], one.opcode):
            first = one.registers[0]
            waiting = [registers for registers in waiting if not registers & named]
            waiting.append(set(range(first, first + 4)))
            counts.append(len(waiting))
        else:
            waiting = [registers for registers in waiting if not registers & named]
    return sum(counts) / len(counts) if counts else 0.0


def tool_version(tool: str) -> str:
    """Return what a tool of NVIDIA's says of its release: ``V13.0.88``."""
    path = shutil.which(tool) or tool
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"V\d+\.\d+\.\d+", done.stdout)
    return match[0] if match else "unknown"
