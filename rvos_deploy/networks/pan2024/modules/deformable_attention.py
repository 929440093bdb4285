"""Define multi-scale deformable attention (Zhu et al. 2021): the operator and its layer.

The operator reads raw offsets and logits from the network's linear layers, so softmax and location
arithmetic can be fused into it. ``rvos_deploy.export.ms_deform_attn`` has its ONNX form.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.pan2024.modules.attention import FeedForwardLayer


def ms_deform_attn(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Sum samples of every level around each query's reference point, with softmax weights.

    Coordinates are those of ``grid_sample`` with ``align_corners=False`` and zero padding: the
    centre of pixel i of W is (i + 0.5) / W, and values outside the map are 0.

    Args:
        value: [B,S,heads,D], the pixels of the levels, row by row, concatenated.
        level_shapes: int32 [levels,2], (height, width); the areas sum to S.
        reference_points: float32 [Q,2], (x, y) in 0..1, the same for all levels.
        sampling_offsets: [B,Q,heads,levels,points,2], (x, y) in pixels of the level.
        attention_logits: [B,Q,heads,levels*points]; softmax is over the last axis.

    Returns:
        [B,Q,heads*D], in the type of ``value``. Coordinates, softmax and sums are float32
        (float64 where ``value`` is).
    """
    if torch.onnx.is_in_onnx_export():
        return _onnx_node(value, level_shapes, reference_points, sampling_offsets, attention_logits)
    return eager_ms_deform_attn(
        value, level_shapes, reference_points, sampling_offsets, attention_logits
    )


def _grid_sample_ms_deform_attn(
    value: Tensor,
    level_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Sample with one ``grid_sample`` a level."""
    batch, _, heads, head_dim = value.shape
    queries, levels = sampling_offsets.shape[1], sampling_offsets.shape[3]
    shapes: list[list[int]] = level_shapes.tolist()
    compute = torch.promote_types(value.dtype, torch.float32)
    weights = torch.softmax(attention_logits.to(compute), dim=-1).unflatten(-1, (levels, -1))
    output = value.new_zeros((batch * heads, head_dim, queries), dtype=compute)
    maps = value.split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        size = torch.tensor([width, height], dtype=compute, device=value.device)
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


class DeformableAttentionLayer(nn.Module):
    """Apply deformable self-attention to a pyramid, then a feed-forward layer; both post-norm."""

    def __init__(self, dim: int, num_heads: int, levels: int, points: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_heads, self.levels, self.points = num_heads, levels, points
        self.sampling_offsets = nn.Linear(dim, num_heads * levels * points * 2)
        self.attention_logits = nn.Linear(dim, num_heads * levels * points)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForwardLayer(dim, ffn_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as Deformable DETR: one direction a head, the points at growing distances."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_logits.weight)
        nn.init.zeros_(self.attention_logits.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Tensor, position: Tensor, reference_points: Tensor, level_shapes: Tensor
    ) -> Tensor:
        """Return updated tokens [B,S,C].

        Args:
            tokens: [B,S,C].
            position: broadcasts to the tokens.
            reference_points: float32 [S,2], (x, y) in 0..1.
            level_shapes: int32 [levels,2].
        """
        positioned = tokens + position
        offsets = self.sampling_offsets(positioned)
        read = ms_deform_attn(
            self.value(tokens).unflatten(-1, (self.num_heads, -1)),
            level_shapes,
            reference_points,
            offsets.unflatten(-1, (self.num_heads, self.levels, self.points, 2)),
            self.attention_logits(positioned).unflatten(-1, (self.num_heads, -1)),
        )
        return self.ffn(self.norm(tokens + self.output(read)))
