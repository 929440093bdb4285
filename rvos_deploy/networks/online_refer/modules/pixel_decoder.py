"""Define the pixel decoder, which builds a map at stride 4 and reads the text at every stride."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import WideGroupNorm
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.modules.attention import (
    FeedForward,
    MultiheadAttention,
    Text,
)

STAGES = (4, 3, 2, 1)
"""Names of the stages in the order in which they run: strides 32, 16, 8 and 4."""


class ConvNorm(nn.Conv2d):
    """Apply a convolution without bias, then the group norm ``norm``."""

    def __init__(self, inner: int, outer: int, kernel: int, groups: int) -> None:
        super().__init__(inner, outer, kernel, padding=kernel // 2, bias=False)
        self.norm = WideGroupNorm(groups, outer)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,outer,H,W] of [B,inner,H,W]."""
        return self.norm(super().forward(x))


class VisionLanguageLayer(FeedForward):
    """Let a map attend to a coarse copy of itself, then to the text; all parts post-norm."""

    def __init__(self, config: OnlineReferConfig, reduction: int) -> None:
        super().__init__(config.dim, config.ffn)
        self.reduction = reduction
        self.self_attn = MultiheadAttention(config.dim, config.num_heads)
        self.multihead_attn = MultiheadAttention(config.dim, config.num_heads)
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)
        self.norm3 = nn.LayerNorm(config.dim)

    def forward(self, image: Tensor, position: Tensor, text: Text) -> Tensor:
        """Return the updated map [E,C,H,W] of E expressions.

        Args:
            image: [E,C,H,W], or [1,C,H,W] for all.
            position: sine positions [H*W,C].
            text: the E expressions.
        """
        height, width = image.shape[2:]
        x = _tokens(image + self._coarse_attention(image, position))
        x = self.norm1(x)
        x = self.norm2(x + self.multihead_attn.read_text(x + position, text))
        x = self.norm3(self.feed_forward(x))
        return x.transpose(1, 2).unflatten(2, (height, width))

    def _coarse_attention(self, image: Tensor, position: Tensor) -> Tensor:
        """Return self-attention among every ``reduction``-th pixel, up-sampled: [B,C,H,W].

        Sides of frames are multiples of 32, so every map is ``reduction`` times as large as the map
        at stride 32, and nearest-neighbour down-sampling reads the first pixel of each cell.
        """
        step = self.reduction
        coarse = image[:, :, ::step, ::step]
        shape = (coarse.shape[2], coarse.shape[3])
        tokens = _tokens(coarse)
        grid = position.unflatten(0, (image.shape[2], image.shape[3]))
        positioned = tokens + grid[::step, ::step].flatten(0, 1)
        read = self.self_attn(positioned, positioned, tokens)
        read = read.transpose(1, 2).unflatten(2, shape)
        if step == 1:
            return read
        return F.interpolate(read, scale_factor=float(step), mode="bilinear", align_corners=False)


class PixelDecoder(nn.Module):
    """Build the map at stride 4 from stride 32 down.

    ``mask_features``, which makes mask features of this map, is applied by ``dynamic_masks``.
    """

    def __init__(self, config: OnlineReferConfig) -> None:
        super().__init__()
        dim, groups = config.dim, config.pixel_norm_groups
        for stage in STAGES:
            inner = config.channels[0] if stage == 1 else dim
            self.add_module(f"adapter_{stage}", ConvNorm(inner, dim, 1, groups))
            self.add_module(f"cross_attn_{stage}", VisionLanguageLayer(config, 16 >> stage))
            self.add_module(f"layer_{stage}", ConvNorm(dim, dim, 3, groups))
        self.mask_features = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, maps: list[Tensor], positions: list[Tensor], text: Text) -> Tensor:
        """Return the map [E,C,H/4,W/4].

        Args:
            maps: the encoder's maps [E,C,h,w] at strides 32, 16 and 8, and res2 [1,channels,h,w].
            positions: sine positions [h*w,C] of these maps.
            text: the E expressions.
        """
        coarser: Tensor | None = None
        for stage, image, position in zip(STAGES, maps, positions, strict=True):
            x = self.get_submodule(f"adapter_{stage}")(image)
            x = self.get_submodule(f"cross_attn_{stage}")(x, position, text)
            if coarser is not None:
                x = x + F.interpolate(coarser, scale_factor=2.0, mode="nearest")
            coarser = torch.relu(self.get_submodule(f"layer_{stage}")(x))
        assert coarser is not None
        return coarser


def _tokens(image: Tensor) -> Tensor:
    """Return the pixels row by row [B,H*W,C] of a map [B,C,H,W]."""
    return image.flatten(2).transpose(1, 2)
