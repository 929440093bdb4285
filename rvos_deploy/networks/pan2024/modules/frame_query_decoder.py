"""Decode N queries in each frame that find the objects that the sentence may mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import additive_mask
from rvos_deploy.networks.modules.position import pixel_centres, sine_position_2d
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.attention import Mlp
from rvos_deploy.networks.pan2024.modules.cross_modal_encoder import EncodedFrame
from rvos_deploy.networks.pan2024.modules.query_layer import AttentionMemory, QueryLayer


class FramePrediction(NamedTuple):
    """Hold logits [B,N,2] (object, no object) and mask_embeddings [B,N,C]."""

    logits: Tensor
    mask_embeddings: Tensor


class QueryDescriptors(NamedTuple):
    """Describe each query of a frame, before the description becomes one token.

    queries: [B,N,C], normalised.
    position: float32 [B,N,5] of the mask (:func:`mask_position`).
    content: [B,N,K], CLIP's features under the mask, at strides 8, 16 and 32, concatenated.
    score: float32 [B,N], the probability that the query has an object.
    """

    queries: Tensor
    position: Tensor
    content: Tensor
    score: Tensor


class DecodedFrame(NamedTuple):
    """Hold the output of the frame query decoder.

    queries: [B,N,C], the frame tokens.
    predictions: predictions of every layer, the initial one first, for the losses.
    descriptors: the source of the tokens.
    """

    queries: Tensor
    predictions: list[FramePrediction]
    descriptors: QueryDescriptors


class FrameQueryDecoder(nn.Module):
    """Decode queries by masked attention and text attention, starting from the sentence.

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
        # Most of a query is its own embedding, for any object. So a token starts with a small share
        # of the query if descriptors provide the object's content and position.
        described = config.mask_position or config.mask_content
        self.query_share = nn.Parameter(torch.full((dim,), 0.1)) if described else None

    def forward(self, frame: EncodedFrame, sentence: Tensor, padding: Tensor) -> DecodedFrame:
        """Decode B frames, each with its own sentence.

        Args:
            frame: encoding of B pairs of frame and sentence.
            sentence: [B,C].
            padding: bool [B,L], True where the text has no token.
        """
        # The layers attend to strides 32, 16 and 8 in turn.
        levels, shapes = frame.levels[::-1], frame.shapes[::-1]
        memories = [level + self.level_embedding[i] for i, level in enumerate(levels)]
        positions = [
            sine_position_2d(h, w, self.dim, self.position_cycles, sentence.device).to(
                sentence.dtype
            )
            for h, w in shapes
        ]
        masks = [resize_mask_features(frame.mask_features, shape) for shape in shapes]
        text = AttentionMemory(frame.text, None, (additive_mask(padding)[:, None, None],))
        queries = sentence[:, None].expand(-1, self.num_queries, -1)
        predictions = [self._predict(queries)]
        for index, layer in enumerate(self.layers):
            level = index % 3
            logits = predictions[-1].mask_embeddings @ masks[level]
            bias = self.attention_bias(logits)[:, None]
            memory = AttentionMemory(memories[level], positions[level], (bias,))
            queries = layer(queries, self.query_position, memory, text)
            predictions.append(self._predict(queries))
        normed = self.norm(queries)
        last = predictions[-1]
        pooled = [
            pool_under_masks(last.mask_embeddings @ mask, feature)
            for mask, feature in zip(reversed(masks), frame.image[1:], strict=True)
        ]
        descriptors = QueryDescriptors(
            normed,
            mask_position(last.mask_embeddings @ masks[1], shapes[1]),
            torch.cat(pooled, dim=-1),
            torch.softmax(last.logits.float(), dim=-1)[..., 0],
        )
        return DecodedFrame(self.tokens(descriptors), predictions, descriptors)

    def tokens(self, descriptors: QueryDescriptors) -> Tensor:
        """Return frame tokens [...,N,C] of descriptors with any leading axes."""
        tokens = (
            descriptors.queries
            if self.query_share is None
            else descriptors.queries * self.query_share
        )
        if self.mask_position is not None:
            score = 2 * descriptors.score[..., None] - 1
            inputs = torch.cat((log_sizes(descriptors.position), score), dim=-1)
            tokens = tokens + self.mask_position(inputs.to(tokens.dtype))
        if self.mask_content is not None:
            tokens = tokens + self.mask_content(descriptors.content)
        return tokens

    def _predict(self, queries: Tensor) -> FramePrediction:
        normed = self.norm(queries)
        return FramePrediction(self.object_head(normed), self.mask_embedding(normed))


def resize_mask_features(mask_features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize mask features [B,C,H/4,W/4] to the size of a level: [B,C,S].

    Dot product and bilinear resizing are both linear. So resizing the features once per level
    equals resizing every query's mask in every layer.
    """
    resized = F.interpolate(mask_features, size=shape, mode="bilinear", align_corners=False)
    return resized.flatten(2)


POSITION_NUMBERS = 5
"""Number of values per mask in :func:`mask_position`."""

HIDING_SLOPE = 20.0
HIDING_FLOOR = 30.0


def thresholded_bias(logits: Tensor) -> Tensor:
    """Return the attention bias of Mask2Former (Cheng et al. 2022): float32 [B,N,S].

    It hides every pixel with a probability below one half, unless that would hide all of them.
    """
    hidden = logits.detach() < 0
    return additive_mask(hidden & ~hidden.all(dim=-1, keepdim=True))


def ramped_bias(logits: Tensor) -> Tensor:
    """Return the attention bias float32 [B,N,S] of mask logits [B,N,S], without gradient.

    The two thresholds of :func:`thresholded_bias` are discontinuous: a difference of 1e-6 between
    two libraries can decide whether a query sees one pixel or all of them. That moved queries by
    0.2 in an export of ``large``. Here the bias falls within a twentieth of a logit, and vanishes
    as a query's best pixel falls from 0 to -1, so close inputs give close outputs. A hidden pixel
    has the weight e^-30.
    """
    wide = logits.detach().float()
    hidden = (-HIDING_SLOPE * wide).clamp(0.0, HIDING_FLOOR)
    sees_something = (1.0 + wide.amax(dim=-1, keepdim=True)).clamp(0.0, 1.0)
    return -hidden * sees_something


class MaskContent(nn.Module):
    """Project the frozen CLIP's features, pooled under each mask, to the width of the queries.

    After FC-CLIP (Yu et al. 2023), which classifies masks by CLIP's features under them. A query
    that was trained to find masks keeps only features that separate its object from the background.
    A probe read the colour of 15 in 100 sprites from the queries, and of 96 from CLIP's features at
    stride 8 under the true masks.
    """

    def __init__(self, channels: list[int], dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.levels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim)) for width in channels
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Return contents [...,C] of pooled features [...,K], the levels concatenated."""
        parts = pooled.split(self.channels, dim=-1)
        projected = [level(part) for level, part in zip(self.levels, parts, strict=True)]
        return torch.stack(projected).sum(dim=0)


def pool_under_masks(logits: Tensor, features: Tensor) -> Tensor:
    """Return the mean [B,N,K] of features, weighted by the probabilities of masks.

    Args:
        logits: [B,N,S] of the masks, S = H * W.
        features: [B,K,H,W], or [1,K,H,W] shared by all B.
    """
    probability = logits.float().sigmoid()
    mass = probability / (probability.sum(-1, keepdim=True) + 1e-6)
    return mass.to(features.dtype) @ features.flatten(2).transpose(1, 2)


def log_sizes(position: Tensor) -> Tensor:
    """Return positions [...,5] with centres in -2..2, and sizes as logarithms.

    On a logarithmic scale, a factor of two is the same step for small and large objects. Sizes
    below a fiftieth are clamped: the logarithm of an almost empty mask is rounding noise.
    """
    sizes = (10 * position[..., 2:].clamp(min=0.02)).log()
    return torch.cat((2 * position[..., :2], sizes), dim=-1)


def mask_position(logits: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the position of each mask, float32 [B,N,5], from logits [B,N,S] on a map of ``shape``.

    The numbers are the soft centroid (x, y) in -1..1, the extent (standard deviation in x and y)
    in halves of an image, and the square root of the area's share of the image.
    """
    centres = 2 * pixel_centres(*shape, logits.device) - 1
    probability = logits.float().sigmoid()
    total = probability.sum(-1, keepdim=True)
    mass = probability / (total + 1e-6)
    # Sums, because autocast runs matrix products in bf16. The variance is taken about the
    # centroid, because the difference of two squares cancels for small masks.
    centroid = (mass[..., None] * centres).sum(-2)
    variance = (mass[..., None] * (centres - centroid[..., None, :]).square()).sum(-2)
    extent = (variance + 1e-6).sqrt()
    area = (total / logits.shape[-1] + 1e-6).sqrt()
    return torch.cat((centroid, extent, area), dim=-1)
