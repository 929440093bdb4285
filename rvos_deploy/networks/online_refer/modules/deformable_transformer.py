"""Define the deformable encoder and the decoder that refines a box in every layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import wide
from rvos_deploy.networks.modules.ms_deform_attn import ms_deform_attn, shapes_tensor
from rvos_deploy.networks.modules.position import pixel_centres, sine_of_points
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.modules.attention import FeedForward, MultiheadAttention

LEVELS = 4
"""Feature levels: strides 8, 16, 32 and 64."""


class Grid(NamedTuple):
    """Hold the locations of P pixels of strides 4 to 64, row by row, concatenated.

    shapes: (height, width) of the five maps.
    centres: float32 [P,2], (x, y) in 0..1.
    position: [P,C], sine positions.
    """

    shapes: list[tuple[int, int]]
    centres: Tensor
    position: Tensor

    def positions(self) -> list[Tensor]:
        """Return the sine positions of each map [height*width,C]."""
        return list(self.position.split([height * width for height, width in self.shapes]))


def grid_of(shapes: list[tuple[int, int]], dim: int, like: Tensor) -> Grid:
    """Return the grid of maps with these (height, width), in the type and on the device of like."""
    centres = torch.cat([pixel_centres(height, width, like.device) for height, width in shapes])
    return Grid(shapes, centres, sine_of_points(centres, dim, 1.0).to(like.dtype))


class Pyramid(NamedTuple):
    """Hold image tokens of E expressions at strides 8 to 64.

    tokens: [E,S,C], the levels row by row, concatenated.
    level_shapes: int32 [levels,2], (height, width).
    grid: grid of stride 4, then of these levels.
    """

    tokens: Tensor
    level_shapes: Tensor
    grid: Grid

    def maps(self) -> list[Tensor]:
        """Return the levels as maps [E,C,height,width]."""
        shapes = self.grid.shapes[1:]
        parts = self.tokens.split([height * width for height, width in shapes], dim=1)
        pairs = zip(parts, shapes, strict=True)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in pairs]


class Locations(NamedTuple):
    """Turn raw offsets into pixel locations of every level: ``origin + offset * scale``.

    Both are [E,Q,levels,2], (x, y) in pixels of the level. They are float32, because a location
    differs by expression and query, and half precision would round it to whole pixels.
    """

    origin: Tensor
    scale: Tensor


class DeformableAttention(nn.Module):
    """Compute multi-scale deformable attention with Deformable DETR's weight names."""

    def __init__(self, config: OnlineReferConfig) -> None:
        super().__init__()
        dim, self.num_heads, self.points = config.dim, config.num_heads, config.num_points
        samples = self.num_heads * LEVELS * self.points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        shapes: Tensor,
        reference_points: Tensor,
        locations: Locations | None = None,
    ) -> Tensor:
        """Return the attended values of the pyramid [E,Q,C].

        Args:
            query: [E,Q,C], with position.
            memory: tokens [E,S,C] of the pyramid.
            shapes: int32 [levels,2], (height, width).
            reference_points: [Q,2], (x, y) in 0..1; offsets in pixels start there.
            locations: None: raw offsets are in pixels.
        """
        offsets = self.sampling_offsets(query)
        offsets = offsets.unflatten(-1, (self.num_heads, LEVELS, self.points, 2))
        if locations is not None:
            scaled = wide(offsets) * locations.scale[:, :, None, :, None]
            offsets = locations.origin[:, :, None, :, None] + scaled
        read = ms_deform_attn(
            self.value_proj(memory).unflatten(-1, (self.num_heads, -1)),
            shapes,
            reference_points,
            offsets,
            self.attention_weights(query).unflatten(-1, (self.num_heads, -1)),
        )
        return self.output_proj(read)


class EncoderLayer(FeedForward):
    """Apply deformable self-attention, then a feed-forward network; both post-norm."""

    def __init__(self, config: OnlineReferConfig) -> None:
        super().__init__(config.dim, config.ffn)
        self.self_attn = DeformableAttention(config)
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, position: Tensor, centres: Tensor, shapes: Tensor) -> Tensor:
        """Return updated tokens [E,S,C]; position [S,C], pixel centres [S,2] in 0..1."""
        x = self.norm1(x + self.self_attn(x + position, x, shapes, centres))
        return self.norm2(self.feed_forward(x))


class Encoder(nn.Module):
    """Stack the encoder's layers."""

    def __init__(self, config: OnlineReferConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))


class DecoderLayer(FeedForward):
    """Apply self-attention, deformable attention to the pyramid, and a feed-forward network."""

    def __init__(self, config: OnlineReferConfig) -> None:
        super().__init__(config.dim, config.ffn)
        self.cross_attn = DeformableAttention(config)
        self.norm1 = nn.LayerNorm(config.dim)
        self.self_attn = MultiheadAttention(config.dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim)
        self.norm3 = nn.LayerNorm(config.dim)

    def forward(
        self, x: Tensor, position: Tensor, hidden: Tensor, pyramid: Pyramid, locations: Locations
    ) -> Tensor:
        """Return updated queries [E,Q,C]; ``hidden`` [E,1,1,Q] is the bias that hides padding."""
        positioned = x + position
        x = self.norm2(x + self.self_attn(positioned, positioned, x, hidden))
        # Expressions and levels share the operator's reference points, but not their locations. So
        # the reference points are 0.
        zero = torch.zeros_like(locations.origin[0, :, 0])
        read = self.cross_attn(x + position, pyramid.tokens, pyramid.level_shapes, zero, locations)
        return self.norm3(self.feed_forward(self.norm1(x + read)))


class Queries(NamedTuple):
    """Hold the decoder's initial queries, for E expressions of Q queries.

    content: [E,Q,C].
    position: [E,Q,C].
    boxes: float32 [E,Q,4], (cx, cy, w, h) in 0..1.
    points: bool [E,1]. True: in the first layer the boxes, of size 0.5, serve only as centres, and
        offsets are in pixels.
    hidden: float32 [E,1,1,Q], the attention bias that hides padding.
    """

    content: Tensor
    position: Tensor
    boxes: Tensor
    points: Tensor
    hidden: Tensor


class Decoder(nn.Module):
    """Stack the decoder's layers; each refines the boxes.

    ``bbox_embed`` is the network's own module under a second name.
    """

    def __init__(self, config: OnlineReferConfig, bbox_embed: nn.ModuleList) -> None:
        super().__init__()
        self.points = config.num_points
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.bbox_embed = bbox_embed

    def forward(self, queries: Queries, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Return the last layer's outputs [E,Q,C] and boxes float32 [E,Q,4]."""
        heights, widths = pyramid.level_shapes.to(queries.boxes.dtype).unbind(1)
        sizes = torch.stack((widths, heights), dim=-1)
        x, boxes = queries.content, queries.boxes
        for index, layer in enumerate(self.layers):
            origin = boxes[:, :, None, :2] * sizes
            scale = boxes[:, :, None, 2:] * sizes * (0.5 / self.points)
            if index == 0:
                scale = torch.where(queries.points[..., None, None], 1.0, scale)
            locations = Locations(origin, scale)
            x = layer(x, queries.position, queries.hidden, pyramid, locations)
            boxes = torch.sigmoid(self.bbox_embed[index](wide(x)) + inverse_sigmoid(boxes))
        return x, boxes


class DeformableTransformer(nn.Module):
    """Hold encoder, decoder, level embedding and the reference points of the first frame."""

    def __init__(self, config: OnlineReferConfig, bbox_embed: nn.ModuleList) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(LEVELS, config.dim))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, bbox_embed)
        self.reference_points = nn.Linear(config.dim, 2)

    def encode(self, levels: list[Tensor], grid: Grid) -> Pyramid:
        """Encode the fused tokens [E,height*width,C] of the levels at strides 8 to 64."""
        tokens = torch.cat(levels, dim=1)
        pairs = zip(grid.positions()[1:], self.level_embed, strict=True)
        position = torch.cat([position + embedding for position, embedding in pairs])
        height, width = grid.shapes[0]
        centres = grid.centres[height * width :]
        sizes = shapes_tensor(grid.shapes[1:], tokens.device)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, centres, sizes)
        return Pyramid(tokens, sizes, grid)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of probabilities, which are clamped ``eps`` away from 0 and 1."""
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
