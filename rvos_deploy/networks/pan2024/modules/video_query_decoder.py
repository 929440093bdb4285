"""The video query decoder: video queries read all frames and decide what is referred to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.attention import Mlp, hide, softmax
from rvos_deploy.networks.pan2024.modules.position import temporal_position
from rvos_deploy.networks.pan2024.modules.query_layer import QueryLayer


class VideoPrediction(NamedTuple):
    """queries [B,N,C]; logits [B,N,2] (referred, no object); mask_embeddings [B,N,C]."""

    queries: Tensor
    logits: Tensor
    mask_embeddings: Tensor


OWN_SLOT = 4.0
"""What half of the heads add at first to the logits of a query's own slot: about three quarters of
their weight then stay with one object, whose course they follow through time."""


MOMENTS = 8
"""At so many moments, from a clip's oldest frame to its newest, the course of a slot is read."""


class Course(nn.Module):
    """How each slot went on through time, as one vector.

    Ours. Attention over frames has to find out first that order matters. Here the sequence of a
    slot's tokens is read directly, at fixed moments of the time seen so far, each the mean of the
    frames around it, which any number of frames can give. After 300 steps on the same cached clips
    the meant one of two held-out objects scored higher in 0.73 of the pairs with it and in 0.65
    without (by motion 0.71 and 0.58; one seed).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = max(1, dim * 3 // 16)
        self.project = nn.Linear(dim, width)
        self.read = Mlp(MOMENTS * width, 2 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, memory: Tensor, ages: Tensor, empty: Tensor) -> Tensor:
        """Courses [B,N,C] of memory [B,M,N,C], ages float32 [B,M] and empty bool [B,M]."""
        ages = torch.where(empty, torch.zeros_like(ages), ages)
        progress = 1 - ages / ages.amax(dim=1, keepdim=True).clamp(min=1)
        moments = torch.linspace(0, 1, MOMENTS, device=ages.device)
        apart = (progress[:, None] - moments[:, None]) * (MOMENTS - 1)
        weights = softmax(hide(empty)[:, None] - 1.5 * apart.square())
        steps = self.project(memory).flatten(2)
        at_moments = (weights.to(steps.dtype) @ steps).unflatten(2, (memory.shape[2], -1))
        course: Tensor = self.norm(self.read(at_moments.transpose(1, 2).flatten(2)))
        return course


MOST_RIVALRY = 4.0
"""What the lead of the best query counts at most, for sentences that mean one object."""


class Rivals(nn.Module):
    """Queries of a clip compared with the best of them, as far as the sentence means one alone.

    Ours. Each query is judged by itself otherwise, and for "the heart that goes left" two hearts
    pass, both a little above the threshold. How much the distance to the best one counts is read
    from the sentence: much where it means one object, nothing where it may mean several.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Hardly anything at first, whatever is said.
        self.alone = nn.utils.skip_init(nn.Linear, dim, 1)
        nn.init.zeros_(self.alone.weight)
        nn.init.constant_(self.alone.bias, -4.0)

    def forward(self, logits: Tensor, said: Tensor) -> Tensor:
        """Logits [B,N,2] of (referred, no object), those behind lowered; said [B,C]."""
        referred, nothing = logits.unbind(dim=-1)
        lead = referred - nothing
        behind = lead.amax(dim=1, keepdim=True) - lead
        counts = MOST_RIVALRY * torch.sigmoid(self.alone(said))
        return torch.stack((referred - counts * behind, nothing), dim=-1)


class ReferredHead(nn.Module):
    """Whether a query is referred to: logits [B,N,2] of (referred, no object).

    LMPM's head sees query and sentence side by side, and a linear layer cannot compare what lies
    so. Here one is multiplied by the other. A CLIP text tower that was trained for short keeps
    little of most words in its end-of-text token (a linear probe told "hexagon" by it with an area
    under the curve of 0.68), so what every token says is gathered beside it.
    """

    def __init__(self, dim: int, rivals: bool) -> None:
        super().__init__()
        self.words = Mlp(dim, dim, dim)
        self.said_norm = nn.LayerNorm(dim)
        self.of_query = nn.Linear(2 * dim, 2 * dim)
        self.of_text = nn.Linear(dim, 2 * dim)
        self.decide = Mlp(2 * dim, dim, 2)
        self.rivals = Rivals(dim) if rivals else None

    def said(self, text: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """What is asked for, [B,C], of text [B,L,C], sentence [B,C] and padding bool [B,L]."""
        spoken = (~padding).to(text.dtype)[..., None]
        # Each token for itself before the mean, in which single words would be faint.
        words = (self.words(text) * spoken).sum(dim=1) / spoken.sum(dim=1)
        said: Tensor = self.said_norm(sentence + words)
        return said

    def forward(self, queries: Tensor, course: Tensor, said: Tensor) -> Tensor:
        """Logits of queries [B,N,C] with their courses [B,N,C]."""
        seen = torch.relu(self.of_query(torch.cat((queries, course), dim=-1)))
        logits: Tensor = self.decide(seen * self.of_text(said)[:, None])
        return logits if self.rivals is None else self.rivals(logits, said)


class LinearReferredHead(nn.Module):
    """Whether a query is referred to, by a linear layer on query and sentence (LMPM)."""

    def __init__(self, dim: int, rivals: bool) -> None:
        super().__init__()
        self.decide = nn.Linear(2 * dim, 2)
        self.rivals = Rivals(dim) if rivals else None

    def said(self, text: Tensor, sentence: Tensor, padding: Tensor) -> Tensor:
        """What is asked for, [B,C]: the sentence."""
        return sentence

    def forward(self, queries: Tensor, course: Tensor, said: Tensor) -> Tensor:
        """Logits [B,N,2] of queries [B,N,C], which hold their courses already."""
        beside = said[:, None].expand(-1, queries.shape[1], -1)
        logits: Tensor = self.decide(torch.cat((queries, beside), dim=-1))
        return logits if self.rivals is None else self.rivals(logits, said)


class VideoQueryDecoder(nn.Module):
    """Decoder over the memory of aligned frame queries, with temporal and slot positions.

    Ours: queries start with the course of their slot, so that motion need not be put together by
    attention; and heads may prefer a query's own slot.

    After LBVQ (Fang et al. 2024) and DsHmp (He and Ding 2024); heads after LMPM (Ding et al. 2023).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dim = dim
        # Slots are alike until they prove otherwise: what they are told apart by is what they hold.
        self.slot_position = nn.Parameter(torch.zeros(config.num_queries, dim))
        self.layers = nn.ModuleList(QueryLayer(config) for _ in range(config.video_decoder_layers))
        self.course = Course(dim) if config.course else None
        self.temporal_position = config.temporal_position
        own = torch.zeros(config.video_decoder_layers, config.num_heads)
        own[:, : config.num_heads // 2] = OWN_SLOT
        self.own_slot = nn.Parameter(own) if config.own_slot else None
        self.norm = nn.LayerNorm(dim)
        head = ReferredHead if config.referred_head == "product" else LinearReferredHead
        self.referred_head = head(dim, config.rivals)
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
        tokens = memory
        if self.temporal_position:
            # Time goes into what is read as well as into where it is looked for: motion is the
            # difference between what a slot said early and what it says late.
            tokens = tokens + temporal_position(ages, self.dim).to(memory.dtype)[:, :, None]
        tokens = tokens.flatten(1, 2)
        memory_position = self.slot_position.repeat(memory.shape[1], 1)
        empty_bias = hide(empty)[:, :, None].expand(-1, -1, num_queries).flatten(1)
        memory_bias = self._memory_bias(empty_bias[:, None, None], memory.shape[1])
        text_bias = hide(padding)[:, None, None]
        said = self.referred_head.said(text, sentence, padding)
        queries, predictions = video_queries, []
        course = torch.zeros_like(queries)
        if self.course is not None:
            course = self.course(memory, ages, empty)
            if sentences > 1:
                course = course.repeat_interleave(sentences, 0)
            queries = queries + course
        for bias, layer in zip(memory_bias, self.layers, strict=True):
            queries = layer(
                queries,
                self.slot_position,
                tokens,
                memory_position,
                bias,
                text,
                text_bias,
                sentences,
            )
            predictions.append(self._predict(queries, course, said))
        return predictions

    def _memory_bias(self, empty: Tensor, frames: int) -> list[Tensor]:
        """Biases of every layer, [B,heads or 1,N,M*N], of one that hides empty frames
        [B,1,1,M*N].
        """
        slots = self.slot_position.shape[0]
        if self.own_slot is None:
            return [empty.expand(-1, -1, slots, -1)] * len(self.layers)
        same_slot = torch.eye(slots, device=empty.device).repeat(1, frames)
        return [empty + own[:, None, None] * same_slot for own in self.own_slot.float()]

    def _predict(self, queries: Tensor, course: Tensor, said: Tensor) -> VideoPrediction:
        normed = self.norm(queries)
        logits = self.referred_head(normed, course, said)
        return VideoPrediction(normed, logits, self.mask_embedding(normed))
