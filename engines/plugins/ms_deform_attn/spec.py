"""Describe the kernels: types, tactics, block shapes, and the error class of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rvos_deploy.errors import BackendError

PLUGIN_ID = "rvos::MSDeformAttn"
KERNEL_NAME = "rvos_ms_deform_attn"
VECTOR_BYTES = 16
"""Bytes that one thread loads of a pixel; they determine how many channels it owns."""

DType = Literal["fp32", "fp16", "bf16"]
ITEM_BYTES: dict[DType, int] = {"fp32": 4, "fp16": 2, "bf16": 2}

TYPES: tuple[tuple[DType, DType, DType], ...] = (
    ("fp32", "fp32", "fp32"),
    *(
        (value, offsets, logits)
        for value in ("fp16", "bf16")
        for offsets in (value, "fp32")
        for logits in (value, "fp32")
    ),
)
"""Types of (values, sampling offsets, attention logits). The last two may be islands of fp32."""


class PluginError(BackendError):
    """The deformable-attention plugin cannot be compiled, registered or launched as asked."""


@dataclass(frozen=True)
class Tactic:
    """One way to compile and launch. TensorRT measures on the user's GPU which one is fastest.

    Args:
        threads: of a block, at most.
        unroll: points whose 4 loads each are in flight together; more points need more registers.
        crowded: ptxas chooses the registers: 40 to 48 from sm_80 on, so that more warps fit, with
            the loads spread among their uses. Otherwise ptxas is told that one block per
            multiprocessor is enough, and keeps the loads of a group together.
    """

    threads: int
    unroll: int
    crowded: bool = False

    @property
    def launch_bounds(self) -> str:
        """The arguments of ``__launch_bounds__``."""
        return f"{self.threads}" if self.crowded else f"{self.threads},1"


TACTICS: dict[int, Tactic] = {
    1: Tactic(128, 1),
    2: Tactic(128, 2),
    3: Tactic(128, 4),
    4: Tactic(64, 2),
    5: Tactic(256, 1),
    6: Tactic(128, 2, crowded=True),
}
"""Tactics by TensorRT's number, which must be positive."""

_MOST_THREADS = max(tactic.threads for tactic in TACTICS.values())


@dataclass(frozen=True)
class KernelSpec:
    """What the compiler must know. Head width, levels and points are arguments of the kernel.

    Args:
        arch: the virtual architecture, for example 80 for ``compute_80``. GPUs of this architecture
            and newer ones run the PTX.
        value: type of values and output.
        offsets: type of the sampling offsets: that of the values, or fp32.
        logits: type of the attention logits: that of the values, or fp32.
        tactic: how to compile and launch.
    """

    arch: int
    value: DType
    offsets: DType
    logits: DType
    tactic: Tactic

    def __post_init__(self) -> None:
        check_types(self.value, self.offsets, self.logits)


def check_types(value: str, offsets: str, logits: str) -> None:
    """Check that there is a kernel of these types. Raises PluginError: there is none."""
    if (value, offsets, logits) not in TYPES:
        raise PluginError(
            f"{PLUGIN_ID} got values in {value}, sampling offsets in {offsets} and attention "
            f"logits in {logits}; values must be fp32, fp16 or bf16, the others the same or fp32: "
            "export again with --precision fp32, fp16 or bf16"
        )


def threads_per_row(value: DType, head_width: int) -> int:
    """Return how many threads share a (query, head).

    Raises:
        PluginError: the head does not fill whole 16-byte vectors, or is wider than a block.
    """
    channels = VECTOR_BYTES // ITEM_BYTES[value]
    widest = _MOST_THREADS * channels
    if head_width % channels or not 0 < head_width <= widest:
        raise PluginError(
            f"{PLUGIN_ID} got heads of {head_width} channels in {value}; it needs a multiple of "
            f"{channels} up to {widest}: change num_heads or the width of the network"
        )
    return head_width // channels


def tactics_for(value: DType, head_width: int) -> list[int]:
    """Return the numbers of the tactics whose block holds at least one row.

    Raises:
        PluginError: see :func:`threads_per_row`.
    """
    needed = threads_per_row(value, head_width)
    return [number for number, tactic in TACTICS.items() if tactic.threads >= needed]


def block_shape(value: DType, head_width: int, tactic: Tactic) -> tuple[int, int]:
    """Return blockDim x and y: (threads of a row, rows).

    Raises:
        PluginError: see :func:`threads_per_row`.
    """
    row = threads_per_row(value, head_width)
    if row > tactic.threads:
        raise PluginError(
            f"a row of {row} threads does not fit a block of {tactic.threads}; take one of the "
            f"tactics {tactics_for(value, head_width)}"
        )
    return row, tactic.threads // row
