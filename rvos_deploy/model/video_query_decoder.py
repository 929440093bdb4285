"""The video query decoder: video queries read all frames and decide what is referred to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvos_deploy.model.attention import Mlp, hide
from rvos_deploy.model.config import ModelConfig
from rvos_deploy.model.position import temporal_position
from rvos_deploy.model.query_layer import QueryLayer


class VideoPrediction(NamedTuple):
    """queries [B,N,C]; logits [B,N,2] (referred, no object); mask_embeddings [B,N,C]."""

    queries: Tensor
    logits: Tensor
    mask_embeddings: Tensor


OWN_SLOT = 4.0
"""What half of the heads add at first to the logits of a query's own slot: about three quarters of
their weight then stay with one object, whose course they follow through time."""


def oldest_frame(memory: Tensor, ages: Tensor, empty: Tensor) -> Tensor:
    """Of the memory [B,M,N,C], the frame of the greatest age that is not empty: [B,1,N,C]."""
    oldest = torch.where(empty, torch.full_like(ages, -1.0), ages).argmax(dim=1)
    index = oldest[:, None, None, None].expand(-1, 1, memory.shape[2], memory.shape[3])
    return memory.gather(1, index)


class VideoQueryDecoder(nn.Module):
    """Decoder over the memory of aligned frame queries, with temporal and slot positions.

    Ours: tokens also say how they differ from those of their slot in the oldest frame, so that
    motion need not be put together by attention; and heads may prefer a query's own slot.

    After LBVQ (Fang et al. 2024) and DsHmp (He and Ding 2024); heads after LMPM (Ding et al. 2023).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dim = dim
        self.slot_position = nn.Parameter(torch.randn(config.num_queries, dim))
        self.layers = nn.ModuleList(QueryLayer(config) for _ in range(config.video_decoder_layers))
        self.displacement = nn.Linear(dim, dim, bias=False) if config.displacement else None
        own = torch.zeros(config.video_decoder_layers, config.num_heads)
        own[:, : config.num_heads // 2] = OWN_SLOT
        self.own_slot = nn.Parameter(own)
        self.norm = nn.LayerNorm(dim)
        self.referred_head = nn.Linear(3 * dim, 2)
        self.mask_embedding = Mlp(dim, dim, dim, dim)

    def forward(
        self,
        memory: Tensor,
        ages: Tensor,
        empty: Tensor,
        video_queries: Tensor,
        text: Tensor,
        sentence: Tensor,
        padding: Tensor,
    ) -> list[VideoPrediction]:
        """One prediction a layer, the last one last.

        Args:
            memory: [B,M,N,C] aligned frame queries, frames in any order.
            ages: float32 [B,M]: how many frames each is older than the newest.
            empty: bool [B,M], True where the memory holds no frame.
            video_queries: [B*S,N,C] initial ones, of S sentences a clip; in graphs S is 1.
            text: [B*S,L,C] resized text tokens.
            sentence: [B*S,C].
            padding: bool [B*S,L] of the text.
        """
        num_queries = memory.shape[2]
        sentences = 1 if torch.compiler.is_exporting() else sentence.shape[0] // memory.shape[0]
        time = temporal_position(ages, self.dim).to(memory.dtype)
        # Time goes into what is read as well as into where it is looked for: motion is the
        # difference between what a slot said early and what it says late.
        tokens = memory + time[:, :, None]
        if self.displacement is not None:
            tokens = tokens + self.displacement(memory - oldest_frame(memory, ages, empty))
        tokens = tokens.flatten(1, 2)
        memory_position = self.slot_position.repeat(memory.shape[1], 1)
        memory_bias = hide(empty)[:, :, None].expand(-1, -1, num_queries).flatten(1)
        same_slot = torch.eye(num_queries, device=memory.device).repeat(1, memory.shape[1])
        text_bias = hide(padding)[:, None, None]
        queries, predictions = video_queries, []
        for own_slot, layer in zip(self.own_slot.float(), self.layers, strict=True):
            queries = layer(
                queries,
                self.slot_position,
                tokens,
                memory_position,
                memory_bias[:, None, None] + own_slot[:, None, None] * same_slot,
                text,
                text_bias,
                sentences,
            )
            predictions.append(self._predict(queries, sentence))
        return predictions

    def _predict(self, queries: Tensor, sentence: Tensor) -> VideoPrediction:
        normed = self.norm(queries)
        said = sentence[:, None].expand_as(normed)
        # LMPM's head sees both side by side, and a linear layer cannot compare what lies so. Their
        # product lets it, where attention would have to find the comparison first.
        both = torch.cat((normed, said, normed * said), dim=-1)
        return VideoPrediction(normed, self.referred_head(both), self.mask_embedding(normed))
