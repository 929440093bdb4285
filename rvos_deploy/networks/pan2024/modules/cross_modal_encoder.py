"""Encode image and text together, and build mask features at stride 4."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import WideGroupNorm, additive_mask, softmax
from rvos_deploy.networks.modules.ms_deform_attn import LevelShapes, level_shapes_of
from rvos_deploy.networks.modules.position import pixel_centres, sine_position_2d
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.attention import FeedForwardLayer, SelfAttentionLayer
from rvos_deploy.networks.pan2024.modules.clip import ImageFeatures
from rvos_deploy.networks.pan2024.modules.deformable_attention import DeformableAttentionLayer


class EncodedFrame(NamedTuple):
    """Hold the output of the encoder.

    mask_features: [B,C,H/4,W/4].
    levels: three tensors [B,S,C], at strides 8, 16 and 32; [1,S,C] where one frame was encoded
        without the texts (``text_fusion`` off).
    shapes: (height, width) of the levels.
    text: [B,L,C], the fused text tokens.
    image: the input features.
    """

    mask_features: Tensor
    levels: list[Tensor]
    shapes: list[tuple[int, int]]
    text: Tensor
    image: ImageFeatures


class BidirectionalAttention(nn.Module):
    """Let image and text attend to each other through one similarity matrix.

    Both streams have a pre-norm, a residual connection and LayerScale (GroundingDINO, GLIP).
    """

    def __init__(self, dim: int, inner_dim: int, num_heads: int, layer_scale: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = 1 / math.sqrt(inner_dim // num_heads)
        self.image_norm, self.text_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.image_query, self.text_key = nn.Linear(dim, inner_dim), nn.Linear(dim, inner_dim)
        self.image_value, self.text_value = nn.Linear(dim, inner_dim), nn.Linear(dim, inner_dim)
        self.image_output, self.text_output = nn.Linear(inner_dim, dim), nn.Linear(inner_dim, dim)
        self.image_scale = nn.Parameter(torch.full((dim,), layer_scale))
        self.text_scale = nn.Parameter(torch.full((dim,), layer_scale))
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor, text: Tensor, text_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Update both streams.

        The image's three projections are multiplied with the text first: (v Wq) K' is v (Wq K').
        A sentence has fewer tokens than a head has channels, so this takes a fraction of the
        products, and nothing of the image is projected once per sentence.

        Args:
            image: [B,S,C], or [1,S,C], shared by all texts.
            text: [B,L,C].
            text_bias: [B,1,1,L] hides padding.

        Returns:
            Updated image [B,S,C] and text [B,L,C].
        """
        v, x = self.image_norm(image), self.text_norm(text)
        key, value = self._split(self.text_key(x)) * self.scale, self._split(self.text_value(x))
        query = self.image_query
        # [B,heads,L,C]: each key as a direction in the image's channels.
        directions = key @ query.weight.unflatten(0, (self.num_heads, -1))
        offset = key @ query.bias.unflatten(0, (self.num_heads, -1, 1))
        similarity = (v @ directions.flatten(1, 2).transpose(1, 2)).transpose(1, 2)
        similarity = similarity.unflatten(1, (self.num_heads, -1)) + offset
        # Flat before the softmax: onnxscript turns reshape, matmul, reshape into one product, which
        # is wrong where the expressions are as many as the heads (tests/export).
        to_text = softmax(similarity.flatten(1, 2))
        to_image = softmax(similarity.transpose(-2, -1) + text_bias.to(similarity.dtype))
        # [B,heads,L,C]: what each token writes into the image.
        written = value @ self.image_output.weight.T.unflatten(0, (self.num_heads, -1))
        image_read = to_image.transpose(1, 2).flatten(2) @ written.flatten(1, 2)
        pixels = (to_text @ v).unflatten(1, (self.num_heads, -1))
        # The weights of a token's pixels sum to 1, so the bias is added once.
        weight = self.image_value.weight.unflatten(0, (self.num_heads, -1)).transpose(1, 2)
        text_read = (pixels @ weight).transpose(1, 2).flatten(2) + self.image_value.bias
        return (
            image + self.image_scale * (image_read + self.image_output.bias),
            text + self.text_scale * self.text_output(text_read),
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class CrossModalLayer(nn.Module):
    """Apply bidirectional attention, then self-attention of the text and of the image."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.text_fusion = config.text_fusion
        if config.text_fusion:
            self.fusion = BidirectionalAttention(
                dim, config.fusion_dim, config.fusion_heads, config.fusion_layer_scale
            )
            self.text_attention = SelfAttentionLayer(dim, config.fusion_heads)
            self.text_ffn = FeedForwardLayer(dim, config.encoder_ffn)
        self.deformable = DeformableAttentionLayer(
            dim, config.num_heads, levels=3, points=config.num_points, ffn_dim=config.encoder_ffn
        )

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        text_bias: Tensor,
        position: Tensor,
        reference_points: Tensor,
        level_shapes: LevelShapes,
    ) -> tuple[Tensor, Tensor]:
        """Return updated image [B,S,C] and text [B,L,C]."""
        if self.text_fusion:
            image, text = self.fusion(image, text, text_bias)
            text = self.text_ffn(self.text_attention(text, biases=(text_bias,)))
        return self.deformable(image, position, reference_points, level_shapes), text


class CrossModalEncoder(nn.Module):
    """Apply cross-modal layers to strides 8 to 32, then one FPN step to stride 4.

    Pixel decoder after Mask2Former (Cheng et al. 2022), fusion after GroundingDINO (Liu et al.
    2023).
    """

    def __init__(self, config: ModelConfig, image_channels: list[int]) -> None:
        super().__init__()
        dim, groups = config.dim, config.norm_groups
        self.dim, self.position_cycles = dim, config.position_cycles
        self.text_fusion = config.text_fusion
        self.projections = nn.ModuleList(
            _conv_norm(channels, dim, groups, kernel=1) for channels in image_channels[1:]
        )
        self.level_embedding = nn.Parameter(torch.randn(3, dim) * 0.02)
        self.layers = nn.ModuleList(CrossModalLayer(config) for _ in range(config.encoder_layers))
        self.lateral = _conv_norm(image_channels[0], dim, groups, kernel=1)
        self.fpn = nn.Sequential(*_conv_norm(dim, dim, groups, kernel=3), nn.ReLU())
        self.mask_features = _xavier(nn.Conv2d(dim, dim, kernel_size=1))

    def forward(self, features: ImageFeatures, text: Tensor, padding: Tensor) -> EncodedFrame:
        """Encode B texts with their frames.

        Args:
            features: features of B frames, or of one frame that all B texts share.
            text: resized text tokens [B,L,C].
            padding: bool [B,L], True where there is no token.
        """
        maps = [
            projection(feature)
            for projection, feature in zip(self.projections, features[1:], strict=True)
        ]
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        tokens, position, centres = self._tokens(maps, shapes)
        level_shapes = level_shapes_of(shapes, text.device)
        text_bias = additive_mask(padding)[:, None, None]
        for layer in self.layers:
            tokens, text = layer(tokens, text, text_bias, position, centres, level_shapes)
        levels = list(tokens.split([height * width for height, width in shapes], dim=1))
        mask_features = self._to_stride_4(features.res2, levels[0], shapes[0])
        if not self.text_fusion:  # nothing above depends on the text, so one frame was encoded once
            mask_features = mask_features.expand(text.shape[0], -1, -1, -1)
        return EncodedFrame(mask_features, levels, shapes, text, features)

    def _tokens(
        self, maps: list[Tensor], shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pyramid's tokens, their positions [S,C] and pixel centres [S,2].

        The tokens are [B,S,C] for B frames. One frame stays [1,S,C] until a layer reads B texts.
        """
        device = maps[0].device
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        position = torch.cat(
            [
                sine_position_2d(h, w, self.dim, self.position_cycles, device)
                + self.level_embedding[level].float()
                for level, (h, w) in enumerate(shapes)
            ]
        )
        centres = torch.cat([pixel_centres(h, w, device) for h, w in shapes])
        return tokens, position.to(tokens.dtype), centres

    def _to_stride_4(self, res2: Tensor, level: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return mask features [B,C,H/4,W/4] from res2 and the level [B,S,C] at stride 8."""
        stride_8 = level.transpose(1, 2).unflatten(2, shape)
        upsampled = F.interpolate(stride_8, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.mask_features(self.fpn(self.lateral(res2) + upsampled))


def _conv_norm(inner: int, outer: int, groups: int, kernel: int) -> nn.Sequential:
    conv = _xavier(nn.Conv2d(inner, outer, kernel, padding=kernel // 2))
    return nn.Sequential(conv, WideGroupNorm(groups, outer))


def _xavier(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
