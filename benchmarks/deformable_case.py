"""Make the tensors on which kernels of deformable attention are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rvos_deploy.engines.plugins.ms_deform_attn.spec import DType

HEADS, HEAD_WIDTH, POINTS = 8, 32, 4
LEVELS = ((15, 27), (30, 54), (60, 108))
"""The encoder of the large network at 480 x 864: strides 32, 16 and 8, one query a pixel."""


@dataclass(frozen=True)
class Case:
    """The tensors of one measurement.

    Args:
        kind: type of values, offsets and logits.
        levels: (height, width) of every level.
        inputs: values, level shapes, reference points, offsets and logits, on the device.
    """

    kind: DType
    levels: tuple[tuple[int, int], ...]
    inputs: tuple[Any, ...]

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """[B,Q,heads*D]."""
        return self.inputs[0].shape[0], self.inputs[3].shape[1], HEADS * HEAD_WIDTH

    @property
    def moved(self) -> int:
        """Bytes that must move at least once."""
        values = self.inputs[0]
        read = sum(tensor.numel() * tensor.element_size() for tensor in self.inputs)
        batch, queries, channels = self.output_shape
        return int(read + batch * queries * channels * values.element_size())


def make_case(
    kind: DType,
    batch: int = 1,
    levels: tuple[tuple[int, int], ...] = LEVELS,
    device: str = "cuda",
) -> Case:
    """Return random inputs, the same for every call with the same arguments."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    pixels = sum(height * width for height, width in levels)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    centres = [
        torch.stack(torch.meshgrid(torch.arange(w) + 0.5, torch.arange(h) + 0.5, indexing="xy"), -1)
        .div(torch.tensor([w, h]))
        .flatten(0, 1)
        for h, w in levels
    ]
    inputs = (
        normal(batch, pixels, HEADS, HEAD_WIDTH),
        torch.tensor(levels, dtype=torch.int32, device=device),
        torch.cat(centres).to(device),
        3 * normal(batch, pixels, HEADS, len(levels), POINTS, 2),
        normal(batch, pixels, HEADS, len(levels) * POINTS),
    )
    return Case(kind, levels, inputs)
