"""Assemble OnlineRefer: the stages that are exported separately, and the parts of a frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import WideGroupNorm, additive_mask, wide
from rvos_deploy.networks.modules.position import sine_position_1d
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.modules.attention import (
    FeedForward,
    Mlp,
    Text,
    VisionLanguageFusion,
)
from rvos_deploy.networks.online_refer.modules.deformable_transformer import (
    LEVELS,
    DeformableTransformer,
    Pyramid,
    Queries,
    grid_of,
    inverse_sigmoid,
)
from rvos_deploy.networks.online_refer.modules.dynamic_masks import dynamic_masks, parameter_count
from rvos_deploy.networks.online_refer.modules.pixel_decoder import PixelDecoder
from rvos_deploy.networks.online_refer.modules.resnet import (
    ImageFeatures,
    NormalisedTrunk,
    ResNet,
)
from rvos_deploy.networks.online_refer.modules.text_encoder import FeatureResizer, build_roberta


class Track(NamedTuple):
    """Hold the state of E expressions before a frame.

    content: [E,C], content of the tracked query.
    position: [E,C], position of that query.
    box: float32 [E,4], last box of that query, (cx, cy, w, h) in 0..1.
    joined: bool [E]. True: this is the expression's first frame, and the fields above are unused.
    preference: float32 [E,Q], added to the class logits that choose the best query; 0 outside
        parity checks.
    """

    content: Tensor
    position: Tensor
    box: Tensor
    joined: Tensor
    preference: Tensor


class FrameOutput(NamedTuple):
    """Hold the output of a frame for E expressions.

    scores: float32 [E,Q], class probability of each query; 0 for padding.
    best: int64 [E], the query with the greatest probability.
    boxes: float32 [E,Q,4], (cx, cy, w, h) in 0..1.
    content: [E,C], for the next frame's track, as are position [E,C] and box float32 [E,4].
    mask_logits: float32 [E,H/4,W/4], of the best query.
    """

    scores: Tensor
    best: Tensor
    boxes: Tensor
    content: Tensor
    position: Tensor
    box: Tensor
    mask_logits: Tensor


class DecodedQueries(NamedTuple):
    """Hold the decoder's result: outputs [E,Q,C], logits float32 [E,Q], boxes float32 [E,Q,4]."""

    outputs: Tensor
    logits: Tensor
    boxes: Tensor


class TrackEmbed(FeedForward):
    """Turn the output of a query into the content of its track."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, output: Tensor) -> Tensor:
        """Return [...,C] of [...,C]."""
        return self.norm(self.feed_forward(output))


class OnlineRefer(nn.Module):
    """Segment referred objects online (Wu et al. 2023): five queries, then one that is tracked."""

    def __init__(self, config: OnlineReferConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        body = ResNet(config.resnet_blocks, config.resnet_width)
        self.backbone = nn.ModuleList([NormalisedTrunk(body)])
        self.text_encoder = build_roberta(config)
        self.resizer = FeatureResizer(config.text_width, dim)
        self.input_proj = _projections(config)
        self.fusion_module = VisionLanguageFusion(dim, config.num_heads)
        layers = range(config.decoder_layers)
        self.class_embed = nn.ModuleList(nn.Linear(dim, 1) for _ in layers)
        self.bbox_embed = nn.ModuleList(Mlp(dim, dim, dim, 4) for _ in layers)
        self.transformer = DeformableTransformer(config, self.bbox_embed)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.pixel_decoder = PixelDecoder(config)
        self.controller = Mlp(dim, dim, dim, parameter_count(dim, config.mask_channels))
        self.track_embed = TrackEmbed(dim)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of tokens and tracks; heads and locations stay in float32."""
        return self.resizer.fc.weight.dtype

    def image_features(self, frame: Tensor) -> ImageFeatures:
        """Return the maps of a frame uint8 [1,H,W,3], H and W multiples of 32."""
        return self.backbone[0](frame)

    def text_tokens(self, token_ids: Tensor, padding: Tensor) -> Tensor:
        """Return text tokens [E,L,C].

        Args:
            token_ids: int64 [E,L], ``PADDING_ID`` where there is no token.
            padding: bool [E,L], True where there is no token.
        """
        bias = additive_mask(padding)[:, None, None].to(self.dtype)
        read = self.text_encoder(input_ids=token_ids, attention_mask=bias).last_hidden_state
        return self.resizer(read)

    def text(self, tokens: Tensor, padding: Tensor) -> Text:
        """Return text tokens [E,L,C] as keys of attention; ``padding`` is bool [E,L]."""
        position = sine_position_1d(padding, self.config.dim).to(tokens.dtype)
        return Text(tokens, position, additive_mask(padding)[:, None, None])

    def encode(self, features: ImageFeatures, text: Text) -> Pyramid:
        """Fuse the frame's strides 8 to 64 with the text of E expressions, and encode them."""
        sources = (*features[1:], features.res5)
        maps = [project(x) for project, x in zip(self.input_proj, sources, strict=True)]
        fused = [self.fusion_module(x.flatten(2).transpose(1, 2), text) for x in maps]
        shapes = [(x.shape[2], x.shape[3]) for x in (features.res2, *maps)]
        return self.transformer.encode(fused, grid_of(shapes, self.config.dim, fused[0]))

    def stride_4(self, features: ImageFeatures, pyramid: Pyramid, text: Text) -> Tensor:
        """Return the pixel decoder's map [E,C,H/4,W/4]."""
        stride_8, stride_16, stride_32, _ = pyramid.maps()
        maps = [stride_32, stride_16, stride_8, features.res2]
        positions = pyramid.grid.positions()[3::-1]
        return self.pixel_decoder(maps, positions, text)

    def queries(self, track: Track) -> Queries:
        """Return the decoder's queries: five for a joined expression, else one and padding."""
        tracked = ~track.joined[:, None] & self._first()
        padding = self.padding(track)
        position = self.query_embed.weight
        centres = torch.sigmoid(self.transformer.reference_points(position))
        # A box of size 0.5 has the logit 0, so its refinement starts like that of a bare centre.
        start = torch.cat((centres, torch.full_like(centres, 0.5)), dim=-1)
        content = track.content[:, None]
        box = torch.sigmoid(inverse_sigmoid(track.box))[:, None]
        return Queries(
            torch.where(tracked[..., None], content, torch.zeros_like(content)),
            torch.where(tracked[..., None], track.position[:, None], position.to(content.dtype)),
            torch.where(tracked[..., None], box, start),
            track.joined[:, None],
            additive_mask(padding)[:, None, None],
        )

    def padding(self, track: Track) -> Tensor:
        """Return the mask of padding queries: bool [E,Q]."""
        return ~track.joined[:, None] & ~self._first()

    def _first(self) -> Tensor:
        """Return True for the first query: bool [Q]."""
        return torch.arange(self.config.num_queries, device=self.query_embed.weight.device) == 0

    def decode(self, queries: Queries, pyramid: Pyramid) -> DecodedQueries:
        """Run the decoder and its class head; results of padding have no meaning."""
        outputs, boxes = self.transformer.decoder(queries, pyramid)
        logits = self.class_embed[-1](wide(outputs)).squeeze(-1)
        return DecodedQueries(outputs, logits, boxes)

    def masks(self, stride_4: Tensor, output: Tensor, box: Tensor) -> Tensor:
        """Return the mask logits float32 [E,H/4,W/4] of one query per expression.

        Args:
            stride_4: the pixel decoder's map [E,C,H/4,W/4].
            output: the decoder's output [E,C].
            box: the decoder's box float32 [E,4].
        """
        parameters = self.controller(wide(output))
        projection = self.pixel_decoder.mask_features
        channels = self.config.mask_channels
        return dynamic_masks(stride_4, projection, parameters, box[:, :2], channels)

    def decode_frame(
        self, features: ImageFeatures, text_tokens: Tensor, text_padding: Tensor, track: Track
    ) -> FrameOutput:
        """Decode one frame for E expressions; each has a first frame or a track.

        Args:
            features: features of the frame.
            text_tokens: [E,L,C].
            text_padding: bool [E,L], True where there is no token.
            track: state of the expressions.
        """
        text = self.text(text_tokens, text_padding)
        pyramid = self.encode(features, text)
        queries, padding = self.queries(track), self.padding(track)
        decoded = self.decode(queries, pyramid)
        best = (decoded.logits + track.preference + additive_mask(padding)).argmax(dim=1)
        output, box = _pick(decoded.outputs, best), _pick(decoded.boxes, best)
        mask_logits = self.masks(self.stride_4(features, pyramid, text), output, box)
        scores = torch.sigmoid(decoded.logits)
        return FrameOutput(
            torch.where(padding, torch.zeros_like(scores), scores),
            best,
            decoded.boxes,
            self.track_embed(output),
            _pick(queries.position, best),
            box,
            mask_logits,
        )


def _pick(x: Tensor, best: Tensor) -> Tensor:
    """Return the values [E,C] of the query ``best`` [E] from values [E,Q,C]."""
    index = best[:, None, None].expand(-1, 1, x.shape[2])
    return x.gather(1, index).squeeze(1)


def _projections(config: OnlineReferConfig) -> nn.ModuleList:
    """Return the projections of strides 8, 16, 32 and, by a strided convolution, 64."""
    dim, groups = config.dim, config.norm_groups
    convolutions = [nn.Conv2d(channels, dim, 1) for channels in config.channels[1:]]
    convolutions.append(nn.Conv2d(config.channels[-1], dim, 3, stride=2, padding=1))
    assert len(convolutions) == LEVELS
    return nn.ModuleList(nn.Sequential(x, WideGroupNorm(groups, dim)) for x in convolutions)
