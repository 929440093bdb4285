"""The frame query decoder: per frame, N queries find the objects that the sentence may mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.attention import Mlp, hide
from rvos_deploy.networks.pan2024.modules.cross_modal_encoder import EncodedFrame
from rvos_deploy.networks.pan2024.modules.position import pixel_centres, sine_position_2d
from rvos_deploy.networks.pan2024.modules.query_layer import QueryLayer


class FramePrediction(NamedTuple):
    """One prediction: logits [B,N,2] (object, no object) and mask embeddings [B,N,C]."""

    logits: Tensor
    mask_embeddings: Tensor


class SlotFacts(NamedTuple):
    """What is known of each slot of a frame, before it is put into one token.

    queries [B,N,C], normed; position float32 [B,N,5] of the mask (:func:`mask_position`); content
    [B,N,K], CLIP's features under the mask, of strides 8, 16 and 32 one after the other; score
    float32 [B,N], the probability of being an object's query.
    """

    queries: Tensor
    position: Tensor
    content: Tensor
    score: Tensor


class DecodedFrame(NamedTuple):
    """queries [B,N,C]: the frame tokens; every prediction, the initial one first (for the losses);
    what the tokens were made from.
    """

    queries: Tensor
    predictions: list[FramePrediction]
    facts: SlotFacts


class FrameQueryDecoder(nn.Module):
    """Masked attention decoder with text attention; queries start from the sentence.

    Sources: Mask2Former (Cheng et al. 2022), LMPM (Ding et al. 2023), DsHmp (He and Ding 2024).
    """

    def __init__(self, config: ModelConfig, image_channels: list[int]) -> None:
        super().__init__()
        dim = config.dim
        self.dim, self.num_queries = dim, config.num_queries
        self.position_cycles = config.position_cycles
        self.attention_bias = ramped_bias if config.hiding == "ramp" else thresholded_bias
        self.query_position = nn.Parameter(torch.randn(config.num_queries, dim))
        self.level_embedding = nn.Parameter(torch.randn(3, dim) * 0.02)
        self.layers = nn.ModuleList(QueryLayer(config) for _ in range(config.frame_decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.object_head = nn.Linear(dim, 2)
        self.mask_embedding = Mlp(dim, dim, dim, dim)
        self.mask_position = Mlp(POSITION_NUMBERS + 1, dim, dim) if config.mask_position else None
        self.mask_content = MaskContent(image_channels[1:], dim) if config.mask_content else None
        # Most of a query is its own embedding, whatever it lies on; a token starts with little of
        # that where something else says what and where its object is.
        described = config.mask_position or config.mask_content
        self.query_share = nn.Parameter(torch.full((dim,), 0.1)) if described else None

    def forward(self, frame: EncodedFrame, sentence: Tensor, padding: Tensor) -> DecodedFrame:
        """Decode B frames, each with its sentence.

        Args:
            frame: of B frame-sentence pairs.
            sentence: [B,C].
            padding: bool [B,L] of the text.
        """
        # Coarse to fine: strides 32, 16, 8 in turn.
        levels, shapes = frame.levels[::-1], frame.shapes[::-1]
        memories = [level + self.level_embedding[i] for i, level in enumerate(levels)]
        positions = [
            sine_position_2d(h, w, self.dim, self.position_cycles, sentence.device).to(
                sentence.dtype
            )
            for h, w in shapes
        ]
        masks = [resize_mask_features(frame.mask_features, shape) for shape in shapes]
        text_bias = hide(padding)[:, None, None]
        queries = sentence[:, None].expand(-1, self.num_queries, -1)
        predictions = [self._predict(queries)]
        for index, layer in enumerate(self.layers):
            level = index % 3
            logits = predictions[-1].mask_embeddings @ masks[level]
            queries = layer(
                queries,
                self.query_position,
                memories[level],
                positions[level],
                self.attention_bias(logits)[:, None],
                frame.text,
                text_bias,
            )
            predictions.append(self._predict(queries))
        normed = self.norm(queries)
        last = predictions[-1]
        pooled = [
            pool_under_masks(last.mask_embeddings @ mask, feature)
            for mask, feature in zip(reversed(masks), frame.image[1:], strict=True)
        ]
        facts = SlotFacts(
            normed,
            mask_position(last.mask_embeddings @ masks[1], shapes[1]),
            torch.cat(pooled, dim=-1),
            torch.softmax(last.logits.float(), dim=-1)[..., 0],
        )
        return DecodedFrame(self.tokens(facts), predictions, facts)

    def tokens(self, facts: SlotFacts) -> Tensor:
        """Frame tokens [B,N,C] from what is known of the slots, for any leading axes."""
        tokens = facts.queries if self.query_share is None else facts.queries * self.query_share
        if self.mask_position is not None:
            placed = torch.cat((scale_free(facts.position), 2 * facts.score[..., None] - 1), dim=-1)
            tokens = tokens + self.mask_position(placed.to(tokens.dtype))
        if self.mask_content is not None:
            tokens = tokens + self.mask_content(facts.content)
        return tokens

    def _predict(self, queries: Tensor) -> FramePrediction:
        normed = self.norm(queries)
        return FramePrediction(self.object_head(normed), self.mask_embedding(normed))


def resize_mask_features(mask_features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mask features at a level's size: [B,C,H/4,W/4] -> [B,C,S].

    Dot product and bilinear resizing are both linear, so resizing the features once a level gives
    what resizing every query's mask at every layer would.
    """
    resized = F.interpolate(mask_features, size=shape, mode="bilinear", align_corners=False)
    return resized.flatten(2)


POSITION_NUMBERS = 5

HIDING_SLOPE = 20.0
HIDING_FLOOR = 30.0


def thresholded_bias(logits: Tensor) -> Tensor:
    """As ``ramped_bias``, but as Mask2Former (Cheng et al. 2022) has it: every pixel with a
    probability under one half is hidden, unless that is all of them.
    """
    hidden = logits.detach() < 0
    return hide(hidden & ~hidden.all(dim=-1, keepdim=True))


def ramped_bias(logits: Tensor) -> Tensor:
    """How much each query must not look at each pixel: float32 [B,N,S] from mask logits [B,N,S].

    Mask2Former hides every pixel that the previous prediction gives a probability under one half,
    unless that is all of them. Those two thresholds are jumps: a difference of 1e-6 between two
    libraries can decide whether a query sees one pixel or all, and moved queries by 0.2 in an
    export of ``large``. Here hiding sets in within a twentieth of a logit, and is lifted as a
    query's best pixel falls from 0 to -1, so that close inputs give close outputs. Hidden means a
    weight of e^-30; no gradient flows.
    """
    wide = logits.detach().float()
    hidden = (-HIDING_SLOPE * wide).clamp(0.0, HIDING_FLOOR)
    sees_something = (1.0 + wide.amax(dim=-1, keepdim=True)).clamp(0.0, 1.0)
    return -hidden * sees_something


class MaskContent(nn.Module):
    """Tells each query what lies under its mask: the frozen CLIP's features, pooled and projected.

    After FC-CLIP (Yu et al. 2023), which classifies masks by CLIP's features under them. A query
    that was trained to find masks keeps of an object what tells it from the background and no
    more: a probe read the colour of 15 in 100 sprites from the queries, and of 96 from CLIP's
    features at stride 8 under the true masks.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.levels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim)) for width in channels
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Contents [...,C] of features [...,K] under masks, the levels' one after the other."""
        parts = pooled.split(self.channels, dim=-1)
        projected = [level(part) for level, part in zip(self.levels, parts, strict=True)]
        return torch.stack(projected).sum(dim=0)


def pool_under_masks(logits: Tensor, features: Tensor) -> Tensor:
    """Mean of features [B,K,H,W] (or [1,K,H,W], shared by all B) weighted by the probabilities of
    masks, from their logits [B,N,S] with S = H * W: [B,N,K].
    """
    probability = logits.float().sigmoid()
    mass = probability / (probability.sum(-1, keepdim=True) + 1e-6)
    return mass.to(features.dtype) @ features.flatten(2).transpose(1, 2)


def scale_free(position: Tensor) -> Tensor:
    """Positions [...,5] with centres in -2..2, and sizes as logarithms: twice as large is as far
    from the same as half as large, for small objects and for large ones. Below a fiftieth all are
    the same: of an almost empty mask, a logarithm would tell rounding errors apart.
    """
    sizes = (10 * position[..., 2:].clamp(min=0.02)).log()
    return torch.cat((2 * position[..., :2], sizes), dim=-1)


def mask_position(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Where each query's mask lies: float32 [B,N,5] from its logits [B,N,S] on a map of ``shape``.

    Soft centroid (x, y) in -1..1, extent (standard deviation, x and y) in units of half an image,
    and the square root of the area's share of the image.
    """
    centres = 2 * pixel_centres(*shape, logits.device) - 1
    probability = logits.float().sigmoid()
    total = probability.sum(-1, keepdim=True)
    mass = probability / (total + 1e-6)
    # Sums and not matrix products, which autocast would run in bf16; and the variance about the
    # centroid, since the difference of two squares has no digits left for small masks.
    centroid = (mass[..., None] * centres).sum(-2)
    variance = (mass[..., None] * (centres - centroid[..., None, :]).square()).sum(-2)
    extent = (variance + 1e-6).sqrt()
    area = (total / logits.shape[-1] + 1e-6).sqrt()
    return torch.cat((centroid, extent, area), dim=-1)
