"""Define multi-scale deformable attention as a layer (Zhu et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rvos_deploy.networks.modules.ms_deform_attn import LevelShapes, ms_deform_attn
from rvos_deploy.networks.pan2024.modules.attention import FeedForwardLayer


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
        """Initialise as Deformable DETR: one direction per head, points at growing distances."""
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
        self,
        tokens: Tensor,
        position: Tensor,
        reference_points: Tensor,
        level_shapes: LevelShapes,
    ) -> Tensor:
        """Return updated tokens [B,S,C].

        Args:
            tokens: [B,S,C].
            position: broadcasts to the tokens.
            reference_points: float32 [S,2], (x, y) in 0..1.
            level_shapes: (height, width) of each level.
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
