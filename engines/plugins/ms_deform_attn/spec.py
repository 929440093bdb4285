"""Describe the kernels: types, tactics, block shapes, and the error class of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rvos_deploy.errors import BackendError

PLUGIN_ID = "rvos::MSDeformAttn"
KERNEL_NAME = "rvos_ms_deform_attn"
VECTOR_BYTES = 16
"""Bytes that one load of a pixel reads."""

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
class LayerSizes:
    """The sizes of a layer that are constants of its kernel.

    Args:
        heads: of the attention.
        head_width: channels of a head, D.
        levels: of the feature pyramid.
        points: of a head on each level.
    """

    heads: int
    head_width: int
    levels: int
    points: int


@dataclass(frozen=True)
class Tactic:
    """One way to compile and launch. TensorRT measures on the user's GPU which one is fastest.

    Args:
        threads: of a block, at most.
        blocks: that must fit a multiprocessor's 64 Ki registers. ptxas uses what that leaves to
            move loads ahead of their use. None lets it use the fewest registers, so that more warps
            fit.
        vectors: of 16 bytes that one thread loads of a pixel.
    """

    threads: int
    blocks: int | None = None
    vectors: int = 1

    @property
    def launch_bounds(self) -> str:
        """The arguments of ``__launch_bounds__``."""
        return f"{self.threads}" if self.blocks is None else f"{self.threads},{self.blocks}"


TACTICS: dict[int, Tactic] = {
    1: Tactic(64, 8),
    2: Tactic(64, 8, vectors=2),
    3: Tactic(128, 4, vectors=2),
    4: Tactic(256, 2, vectors=2),
    5: Tactic(512, 1, vectors=2),
}
"""Tactics by TensorRT's number, which must be positive.

They are those that no other candidate beats in every count (benchmarks/studies/kernel_counts.py).
The first serves heads of an odd number of vectors, too.
"""


@dataclass(frozen=True)
class KernelSpec:
    """What the compiler must know.

    Args:
        arch: the virtual architecture, for example 80 for ``compute_80``. GPUs of this architecture
            and newer ones run the PTX.
        value: type of values and output.
        offsets: type of the sampling offsets: that of the values, or fp32.
        logits: type of the attention logits: that of the values, or fp32.
        sizes: of the layer.
        tactic: how to compile and launch.
    """

    arch: int
    value: DType
    offsets: DType
    logits: DType
    sizes: LayerSizes
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


def tactics_for(value: DType, head_width: int) -> list[int]:
    """Return the numbers of the tactics whose threads share a head evenly and fit a block.

    Raises:
        PluginError: there is none: the head does not fill whole 16-byte vectors, or is too wide.
    """
    found = [
        number
        for number, tactic in TACTICS.items()
        if _row_threads(value, head_width, tactic) is not None
    ]
    if not found:
        channels = _channels(value)
        raise PluginError(
            f"{PLUGIN_ID} got heads of {head_width} channels in {value}; it needs a multiple of "
            f"{channels} up to {_widest(value, 1)}, or of {2 * channels} up to "
            f"{_widest(value, 2)}: change num_heads or the width of the network"
        )
    return found


def block_shape(value: DType, head_width: int, tactic: Tactic) -> tuple[int, int]:
    """Return blockDim x and y: (threads of a row, queries).

    Raises:
        PluginError: see :func:`tactics_for`, or the tactic is none of those.
    """
    row = _row_threads(value, head_width, tactic)
    if row is None:
        raise PluginError(
            f"a block of {tactic.threads} threads of {tactic.vectors} vectors does not fit heads "
            f"of {head_width} channels; take one of the tactics {tactics_for(value, head_width)}"
        )
    return row, tactic.threads // row


def grid_shape(batch: int, queries: int, heads: int, block_y: int) -> tuple[int, int, int]:
    """Return gridDim: (blocks of queries, heads, batch)."""
    return -(-queries // block_y), heads, batch


def check_value_bytes(value: DType, pixels: int, sizes: LayerSizes) -> None:
    """Check that distances between pixels fit in 32 bits.

    Raises:
        PluginError: the values of a batch entry have 2 GiB or more.
    """
    size = pixels * sizes.heads * sizes.head_width * ITEM_BYTES[value]
    if size >= 2**31:
        raise PluginError(
            f"{PLUGIN_ID} got {pixels} pixels, {size / 2**30:.1f} GiB of values in {value}; it "
            "needs less than 2 GiB: build with a --profile of smaller frames"
        )


def _channels(value: DType) -> int:
    """Return the channels of a 16-byte vector."""
    return VECTOR_BYTES // ITEM_BYTES[value]


def _widest(value: DType, vectors: int) -> int:
    """Return the channels of the widest head that a tactic with these vectors serves."""
    threads = (tactic.threads for tactic in TACTICS.values() if tactic.vectors == vectors)
    return max(threads) * vectors * _channels(value)


def _row_threads(value: DType, head_width: int, tactic: Tactic) -> int | None:
    """Return how many threads share a row (a query and a head), or None where they cannot."""
    threads, rest = divmod(head_width, _channels(value) * tactic.vectors)
    return threads if not rest and 0 < threads <= tactic.threads else None
