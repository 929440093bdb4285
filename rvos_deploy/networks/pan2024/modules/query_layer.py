"""Define the layer that both query decoders stack."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.attention import (
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)


class AttentionMemory(NamedTuple):
    """Hold the tokens that queries attend to.

    tokens: [B,K,C], keys and values.
    position: added to the keys, broadcasts to them; None: no position.
    biases: float32, each added to the logits; each broadcasts to [B,heads,Q,K].
    """

    tokens: Tensor
    position: Tensor | None
    biases: tuple[Tensor, ...]


class QueryLayer(nn.Module):
    """Apply cross-attention to a memory and to the text, self-attention and a feed-forward layer.

    All are post-norm. The memory is one level of the image in the frame query decoder, and the
    clip's frame queries in the video query decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.memory_attention = CrossAttentionLayer(config.dim, config.num_heads)
        self.text_attention = (
            CrossAttentionLayer(config.dim, config.num_heads) if config.text_fusion else None
        )
        self.self_attention = SelfAttentionLayer(config.dim, config.num_heads)
        self.ffn = FeedForwardLayer(config.dim, config.decoder_ffn)

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        memory: AttentionMemory,
        text: AttentionMemory,
        shared: int = 1,
    ) -> Tensor:
        """Return updated queries [B,N,C].

        Args:
            queries: [B,N,C].
            query_position: [N,C].
            memory: memory of B/shared clips.
            text: text of B sentences.
            shared: number of consecutive sets of queries that attend to each memory. The sets are
                concatenated for the attention, so keys and values are computed once.
        """
        position, biases = query_position, memory.biases
        if shared > 1:
            queries = queries.unflatten(0, (-1, shared)).flatten(1, 2)
            position = position.repeat(shared, 1)
            biases = tuple(
                bias if bias.shape[2] == 1 else bias.repeat(1, 1, shared, 1) for bias in biases
            )
        queries = self.memory_attention(queries, memory.tokens, position, memory.position, biases)
        if shared > 1:
            queries = queries.unflatten(1, (shared, -1)).flatten(0, 1)
        if self.text_attention is not None:
            queries = self.text_attention(queries, text.tokens, query_position, biases=text.biases)
        return self.ffn(self.self_attention(queries, query_position))
