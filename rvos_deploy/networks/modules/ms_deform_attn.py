"""Define the operator of multi-scale deformable attention (Zhu et al. 2021).

The operator reads raw offsets and logits from the network's linear layers, so softmax and location
arithmetic can be fused into it. ``rvos_deploy.export.ms_deform_attn`` has its ONNX form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LevelShapes = Tensor | Sequence[tuple[int, int]]
"""(height, width) of each level: an int32 tensor [levels,2], or numbers (``level_shapes_of``)."""


def ms_deform_attn(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Sum samples of every level around each query's reference point, with softmax weights.

    Coordinates are those of ``grid_sample`` with ``align_corners=False`` and zero padding: the
    centre of pixel i of W is (i + 0.5) / W, and values outside the map are 0.

    Args:
        value: [B,S,heads,D], the pixels of the levels, row by row, concatenated.
        level_shapes: int32 [levels,2], (height, width), or numbers; the areas sum to S.
        reference_points: float32 [Q,2], (x, y) in 0..1, the same for all levels.
        sampling_offsets: [B,Q,heads,levels,points,2], (x, y) in pixels of the level.
        attention_logits: [B,Q,heads,levels*points]; softmax is over the last axis.

    Returns:
        [B,Q,heads*D], in the type of ``value``. Coordinates, softmax and sums are float32
        (float64 where ``value`` is).
    """
    if torch.onnx.is_in_onnx_export():
        assert isinstance(level_shapes, Tensor)
        return _onnx_node(value, level_shapes, reference_points, sampling_offsets, attention_logits)
    return eager_ms_deform_attn(
        value, level_shapes, reference_points, sampling_offsets, attention_logits
    )


def _grid_sample_ms_deform_attn(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Sample with one ``grid_sample`` per level. With numbers as shapes, nothing waits for a GPU or
    is copied to it, so a CUDA graph can hold it.
    """
    batch, _, heads, head_dim = value.shape
    queries, levels = sampling_offsets.shape[1], sampling_offsets.shape[3]
    shapes = level_shapes.tolist() if isinstance(level_shapes, Tensor) else level_shapes
    compute = torch.promote_types(value.dtype, torch.float32)
    weights = torch.softmax(attention_logits.to(compute), dim=-1).unflatten(-1, (levels, -1))
    output = value.new_zeros((batch * heads, head_dim, queries), dtype=compute)
    maps = value.split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        size = torch.stack([value.new_full((), side, dtype=compute) for side in (width, height)])
        offsets = sampling_offsets[:, :, :, level].to(compute) / size
        locations = reference_points.to(compute)[None, :, None, None] + offsets
        grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
        image = maps[level].to(compute).permute(0, 2, 3, 1)
        image = image.reshape(batch * heads, head_dim, height, width)
        samples = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
        level_weights = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        output = output + (samples * level_weights[:, None]).sum(-1)
    return output.view(batch, heads * head_dim, queries).transpose(1, 2).to(value.dtype)


eager_ms_deform_attn = _grid_sample_ms_deform_attn
"""Implementation in eager PyTorch. Training on a CPU may replace it with a faster one."""


def _onnx_node(value: Tensor, *inputs: Tensor) -> Tensor:
    """Emit one node ``rvos::MSDeformAttn``: a plugin if one is registered, else a function."""
    batch, _, heads, head_dim = value.shape
    queries = inputs[2].shape[1]
    return torch.onnx.ops.symbolic(
        "rvos::MSDeformAttn",
        (value, *inputs),
        attrs={"plugin_namespace": "rvos", "plugin_version": "1", "aot": 1},
        dtype=value.dtype,
        shape=(batch, queries, heads * head_dim),
        version=1,
    )


def level_shapes_of(shapes: Sequence[tuple[int, int]], device: torch.device) -> LevelShapes:
    """Return shapes as ``ms_deform_attn`` takes them: a tensor for the export, else the numbers.

    From a tensor on a GPU the eager form would read them back, and wait for the GPU to do so.
    """
    return shapes_tensor(shapes, device) if torch.onnx.is_in_onnx_export() else shapes


def shapes_tensor(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return (height, width) of each level: int32 [levels,2]."""
    sides = [torch.scalar_tensor(side, dtype=torch.int32) for shape in shapes for side in shape]
    return torch.stack(sides).view(-1, 2).to(device)
