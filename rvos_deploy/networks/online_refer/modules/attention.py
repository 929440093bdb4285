"""Define attention, feed-forward networks and perceptrons with PyTorch's names of weights."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import softmax


class Text(NamedTuple):
    """Hold E expressions as keys and values of attention.

    tokens: [E,L,C].
    position: [E,L,C], sine positions.
    bias: float32 [E,1,1,L], added to the logits; it hides padding.
    """

    tokens: Tensor
    position: Tensor
    bias: Tensor


class MultiheadAttention(nn.Module):
    """Compute attention with the weights of ``torch.nn.MultiheadAttention``.

    PyTorch's own module has no softmax in float32, and cannot broadcast a batch of 1 to one of E.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return the attended values [B,Q,C].

        Args:
            query: [B,Q,C], or [1,Q,C] for all.
            key: [B,K,C].
            value: [B,K,C].
            bias: float32, added to the logits; broadcasts to [B,heads,Q,K].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, b in zip((query, key, value), weights, biases, strict=True)
        )
        logits = (q * (1.0 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias.to(logits.dtype)
        return self.out_proj((softmax(logits) @ v).transpose(1, 2).flatten(2))

    def read_text(self, query: Tensor, text: Text) -> Tensor:
        """Return the attended values of the text [E,Q,C] for queries [B,Q,C]."""
        return self(query, text.tokens + text.position, text.tokens, text.bias)


class FeedForward(nn.Module):
    """Add a residual ReLU perceptron of ``linear1`` and ``linear2`` to a layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return [...,C] plus the perceptron's result, without norm."""
        return x + self.linear2(torch.relu(self.linear1(x)))


class Mlp(nn.Module):
    """Stack linear layers with ReLU between them: ``Mlp(in, hidden, ..., out)``."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Return [...,out] of [...,in]."""
        for index, layer in enumerate(self.layers):
            x = layer(torch.relu(x) if index else x)
        return x


class VisionLanguageFusion(nn.Module):
    """Multiply image tokens by their attended values of the text. One module serves all levels."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, num_heads)

    def forward(self, image: Tensor, text: Text) -> Tensor:
        """Return fused image tokens [E,S,C] of one frame's tokens [1,S,C]."""
        return image * self.multihead_attn.read_text(image, text)
