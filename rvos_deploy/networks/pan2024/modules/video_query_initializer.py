"""Compute the initial video queries of a clip from its frame queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import ModelConfig


class VideoQueryInitializer(nn.Module):
    """Sum aligned frame queries over time with softmax weights (LBVQ, Fang et al. 2024).

    The part that runs per frame (``values`` and ``logits``) does not depend on the order of the
    slots. So a stream computes it before alignment, and keeps the sum as an online softmax.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.variant = config.initializer
        self.value = nn.Linear(config.dim, config.dim)
        self.weight = nn.Linear(config.dim, 1)

    def per_frame(self, frame_queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [...,N,C] and logits [...,N] of frame queries [...,N,C]."""
        values = self.value(frame_queries)
        return values, self.weight(values).squeeze(-1)

    def forward(self, values: Tensor, logits: Tensor, sentence: Tensor) -> Tensor:
        """Return initial video queries [B,N,C].

        Args:
            values: [B,T,N,C], aligned.
            logits: [B,T,N], aligned.
            sentence: [B,C], the initial queries of the variant ``sentence`` (LMPM).
        """
        if self.variant == "sentence":
            return sentence[:, None].expand(-1, values.shape[2], -1)
        weights = torch.softmax(logits.float(), dim=1)
        return (weights[..., None] * values).sum(dim=1).to(values.dtype)
