"""The layer that both query decoders are made of."""

from __future__ import annotations

from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.attention import (
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)


class QueryLayer(nn.Module):
    """Cross-attention to a memory, text cross-attention, self-attention, feed-forward; post-norm.

    The memory is a level of the image in the frame query decoder, and the frame queries of the clip
    in the video query decoder.
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
        memory: Tensor,
        memory_position: Tensor,
        memory_bias: Tensor,
        text: Tensor,
        text_bias: Tensor,
        shared: int = 1,
    ) -> Tensor:
        """Queries [B,N,C] -> [B,N,C]; memory [B,K,C], text [B,L,C], biases as for attention.

        With ``shared`` above 1 each memory and its bias serve so many queries in turn: [B/shared].
        They are put side by side there, so that keys and values are made once.
        """
        if shared > 1:
            queries = queries.unflatten(0, (-1, shared)).flatten(1, 2)
            memory_bias = memory_bias.repeat(1, 1, shared, 1)
        placed = query_position if shared == 1 else query_position.repeat(shared, 1)
        queries = self.memory_attention(queries, memory, placed, memory_position, memory_bias)
        if shared > 1:
            queries = queries.unflatten(1, (shared, -1)).flatten(0, 1)
        if self.text_attention is not None:
            queries = self.text_attention(queries, text, query_position, bias=text_bias)
        return self.ffn(self.self_attention(queries, query_position))
