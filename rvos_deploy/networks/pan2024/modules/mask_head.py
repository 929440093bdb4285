"""The mask head: dot products with mask features, and the union of the queries that pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOTHING = -100.0
"""Mask logit where no query passes: a probability of 0 in every type."""


class MaskHead(nn.Module):
    """A 1x1 convolution of the mask features, then the dot product with each embedding (LMPM).

    The convolution is folded into the embeddings, e . (W m + b) = (W' e) . m + e . b, which costs
    N*C*C instead of C*C*H*W multiply-adds and gives the same logits.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self,
        mask_embeddings: Tensor,
        mask_features: Tensor,
        frame_mask_embeddings: Tensor | None = None,
    ) -> Tensor:
        """Mask logits [...,N,H,W] of embeddings [...,N,C] on mask features [...,C,H,W].

        frame_mask_embeddings: [...,N,C], what the slots' frame queries say of this frame; added
        after the convolution, since they were trained without it.
        """
        folded = mask_embeddings @ self.projection.weight
        if frame_mask_embeddings is not None:
            folded = folded + frame_mask_embeddings
        bias = mask_embeddings @ self.projection.bias
        logits = folded.float() @ mask_features.float().flatten(-2)
        shape = (mask_features.shape[-2], mask_features.shape[-1])
        return (logits + bias.float()[..., None]).unflatten(-1, shape)


def unite_masks(logits: Tensor, scores: Tensor, threshold: Tensor) -> Tensor:
    """One logit map for everything that is referred to: the maximum over the queries that pass.

    Args:
        logits: float32 [B,N,H,W].
        scores: float32 [B,N].
        threshold: float32 [B]; a query passes when its score is greater.

    Returns:
        float32 [B,H,W]; ``NOTHING`` everywhere when no query passes.
    """
    passes = scores > threshold[:, None]
    floor = torch.full_like(scores, NOTHING)[..., None, None]
    return torch.where(passes[..., None, None], logits, floor).amax(dim=1)
