"""List published rates of graphics cards, which no kernel on them can exceed.

The rates are dense (never "with sparsity"), at the card's boost clock and its own power limit. They
are copied from the documents named; none was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Rates:
    """Hold the rates of a GPU per second; a multiply-add is two floating-point operations.

    Args:
        bytes_per_second: to and from the GPU's memory.
        fp32_flops: float32 outside tensor cores.
        fp16_flops: float16 on tensor cores, with sums in float16 where that is faster.
        bf16_flops: bfloat16, and float16 summed in float32; None without bfloat16.
        tf32_flops: float32 rounded to TF32, on tensor cores; None without TF32.
    """

    bytes_per_second: float
    fp32_flops: float
    fp16_flops: float
    bf16_flops: float | None
    tf32_flops: float | None


@dataclass(frozen=True)
class GpuSpec:
    """A GPU's published rates, and the document that states them."""

    name: str
    rates: Rates
    source: str


def _rates(
    gigabytes: float, fp32: float, fp16: float, bf16: float | None, tf32: float | None
) -> Rates:
    """Convert gigabytes and teraflops per second."""
    return Rates(
        gigabytes * GIGA,
        fp32 * TERA,
        fp16 * TERA,
        None if bf16 is None else bf16 * TERA,
        None if tf32 is None else tf32 * TERA,
    )


_TURING = "NVIDIA T4 Tensor Core GPU datasheet"
_A10 = "NVIDIA A10 Tensor Core GPU datasheet"
_L4 = "NVIDIA L4 Tensor Core GPU datasheet (rates there are with sparsity: halved)"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet, SXM4 80 GB"
_AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper, GeForce RTX 3090"
_ADA = "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090"
_L40S = "NVIDIA L40S GPU datasheet"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet, SXM5 80 GB (with sparsity there: halved)"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper, GeForce RTX 5090"

GPU_SPECS = (
    GpuSpec("T4", _rates(320, 8.1, 65, None, None), _TURING),
    GpuSpec("A10", _rates(600, 31.2, 125, 125, 62.5), _A10),
    GpuSpec("L4", _rates(300, 30.3, 121, 121, 60), _L4),
    GpuSpec("A100 80GB", _rates(2039, 19.5, 312, 312, 156), _A100),
    # GeForce cards sum float16 in float32 at half the rate.
    GpuSpec("RTX 3090", _rates(936, 35.6, 142, 71, 35.6), _AMPERE),
    GpuSpec("RTX 4090", _rates(1008, 82.6, 330.3, 165.2, 82.6), _ADA),
    GpuSpec("L40S", _rates(864, 91.6, 362.05, 362.05, 183), _L40S),
    GpuSpec("H100 SXM", _rates(3350, 66.9, 989.4, 989.4, 494.7), _H100),
    GpuSpec("RTX 5090", _rates(1792, 104.8, 419, 209.5, 104.8), _BLACKWELL),
)
