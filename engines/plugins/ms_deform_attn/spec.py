"""Which kernels there are: types, tactics, the shape of a block, and the error of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rvos_deploy.errors import BackendError

PLUGIN_ID = "rvos::MSDeformAttn"
KERNEL_NAME = "rvos_ms_deform_attn"
VECTOR_BYTES = 16
"""What one thread loads of a pixel, and how many channels it therefore owns."""

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
"""(values, sampling offsets, attention logits): offsets and logits may be islands of fp32."""


class PluginError(BackendError):
    """The deformable-attention plugin cannot be compiled, registered or launched as asked."""


@dataclass(frozen=True)
class Tactic:
    """One way to compile and launch; which one is quickest, TensorRT finds out on the user's card.

    Args:
        threads: of a block, at most.
        unroll: points whose 4 loads each are in flight together; costs registers.
        crowded: let ptxas choose: from sm_80 on it then takes 40 to 48 registers, so that more
            warps fit, and spreads the loads among their uses. Else it is told that one block per
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
"""By TensorRT's number, which must be positive."""

_MOST_THREADS = max(tactic.threads for tactic in TACTICS.values())


@dataclass(frozen=True)
class KernelSpec:
    """What the compiler needs to know. Head width, levels and points are not among it.

    Args:
        arch: the virtual architecture, e.g. 80 for ``compute_80``; cards from it on run the PTX.
        value: type of values and output.
        offsets: type of the sampling offsets: that of the values, or fp32.
        logits: type of the attention logits: that of the values, or fp32.
    """

    arch: int
    value: DType
    offsets: DType
    logits: DType
    tactic: Tactic

    def __post_init__(self) -> None:
        check_types(self.value, self.offsets, self.logits)


def check_types(value: str, offsets: str, logits: str) -> None:
    """Raises: PluginError: no kernel has these types."""
    if (value, offsets, logits) not in TYPES:
        raise PluginError(
            f"{PLUGIN_ID} got values in {value}, sampling offsets in {offsets} and attention "
            f"logits in {logits}; values must be fp32, fp16 or bf16, the others the same or fp32: "
            "export again with --precision fp32, fp16 or bf16"
        )


def threads_per_row(value: DType, head_width: int) -> int:
    """How many threads share a (query, head).

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
    """The numbers of the tactics whose block holds a row at least.

    Raises:
        PluginError: see :func:`threads_per_row`.
    """
    needed = threads_per_row(value, head_width)
    return [number for number, tactic in TACTICS.items() if tactic.threads >= needed]


def block_shape(value: DType, head_width: int, tactic: Tactic) -> tuple[int, int]:
    """(threads of a row, rows): blockDim x and y.

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
