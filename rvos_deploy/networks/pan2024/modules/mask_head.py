"""Compute mask logits as dot products, and unite the masks of the queries that pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMPTY_LOGIT = -100.0
"""Mask logit where no query passes: its probability is 0 in every type."""


class MaskHead(nn.Module):
    """Compute mask logits: a 1x1 convolution of the mask features, then dot products (LMPM).

    The convolution is folded into the embeddings, e . (W m + b) = (W' e) . m + e . b. That needs
    N*C*C instead of C*C*H*W multiply-adds for the same logits.
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
        """Return mask logits float32 [...,N,H,W].

        Args:
            mask_embeddings: [...,N,C] of video queries.
            mask_features: [...,C,H,W].
            frame_mask_embeddings: [...,N,C] of the slots' frame queries. They are added after the
                convolution, because they were trained without it.
        """
        folded = mask_embeddings @ self.projection.weight
        if frame_mask_embeddings is not None:
            folded = folded + frame_mask_embeddings
        bias = mask_embeddings @ self.projection.bias
        logits = folded.float() @ mask_features.float().flatten(-2)
        shape = (mask_features.shape[-2], mask_features.shape[-1])
        return (logits + bias.float()[..., None]).unflatten(-1, shape)


def unite_masks(logits: Tensor, scores: Tensor, threshold: Tensor) -> Tensor:
    """Return one map of logits: the maximum over the queries that pass.

    Args:
        logits: float32 [B,N,H,W].
        scores: float32 [B,N].
        threshold: float32 [B]; a query passes when its score is greater.

    Returns:
        float32 [B,H,W]; ``EMPTY_LOGIT`` everywhere when no query passes.
    """
    passes = scores > threshold[:, None]
    floor = torch.full_like(scores, EMPTY_LOGIT)[..., None, None]
    return torch.where(passes[..., None, None], logits, floor).amax(dim=1)
