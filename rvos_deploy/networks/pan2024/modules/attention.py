"""Define multi-head attention and the layers around it, in operators that every export has."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import softmax


class MultiHeadAttention(nn.Module):
    """Compute scaled dot-product attention with separate projections (Vaswani et al. 2017)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *biases: Tensor) -> Tensor:
        """Return the attended values [B,Q,C].

        Args:
            query: [B,Q,C].
            key: [B,K,C].
            value: [B,K,C].
            biases: float32, each added to the logits; each broadcasts to [B,heads,Q,K]. They are
                not summed first, because the sum may be as large as the logits.
        """
        q = self._split(self.query(query)) * (1.0 / math.sqrt(self.head_dim))
        k = self._split(self.key(key))
        v = self._split(self.value(value))
        logits = q @ k.transpose(-2, -1)
        for bias in biases:
            logits = logits + bias.to(logits.dtype)
        return self.output((softmax(logits) @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """Split the heads: [B,K,C] to [B,heads,K,C/heads]."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class CrossAttentionLayer(nn.Module):
    """Apply residual cross-attention, post-norm; positions are added to queries and keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor,
        query_position: Tensor,
        memory_position: Tensor | None = None,
        biases: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Return queries [B,Q,C] updated from memory [B,K,C]; positions broadcast to them."""
        key = memory if memory_position is None else memory + memory_position
        read = self.attention(queries + query_position, key, memory, *biases)
        return self.norm(queries + read)


class SelfAttentionLayer(nn.Module):
    """Apply residual self-attention, post-norm; the position is added to queries and keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tensor, position: Tensor | None = None, biases: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """Return updated tokens [B,K,C]; the position broadcasts to them."""
        positioned = tokens if position is None else tokens + position
        return self.norm(tokens + self.attention(positioned, positioned, tokens, *biases))


class FeedForwardLayer(nn.Module):
    """Apply a residual two-layer perceptron with ReLU, post-norm."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim)
        self.shrink = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        for layer in (self.expand, self.shrink):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return updated tokens [...,C]."""
        return self.norm(tokens + self.shrink(torch.relu(self.expand(tokens))))


class Mlp(nn.Sequential):
    """Stack linear layers with ReLU between them: ``Mlp(in, hidden, ..., out)``."""

    def __init__(self, *dims: int) -> None:
        layers: list[nn.Module] = []
        for index, (inner, outer) in enumerate(pairwise(dims)):
            if index:
                layers.append(nn.ReLU())
            layers.append(nn.Linear(inner, outer))
        super().__init__(*layers)
