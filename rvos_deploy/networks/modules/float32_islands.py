"""Compute sensitive operators in float32 instead of half precision. Wider types do not change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = -1e4
"""Added to the logits of hidden keys. It is finite, because -inf becomes NaN in fp16; its
exponential is exactly zero in every type."""


def wide(x: Tensor) -> Tensor:
    """Return half-precision numbers in float32, and any other floating-point ones unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def additive_mask(mask: Tensor) -> Tensor:
    """Return the attention bias, float32, of a bool mask (True: hidden)."""
    return mask.float() * HIDDEN


def softmax(logits: Tensor) -> Tensor:
    """Compute softmax over the last axis; the result has the type of the logits."""
    return torch.softmax(wide(logits), dim=-1).to(logits.dtype)


class WideGroupNorm(nn.GroupNorm):
    """Compute group norm, whose sums run over whole maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B,C,...]; shape and type do not change."""
        weight, bias = wide(self.weight), wide(self.bias)
        return F.group_norm(wide(x), self.num_groups, weight, bias, self.eps).to(x.dtype)
