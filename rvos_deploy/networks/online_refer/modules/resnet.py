"""Define the image trunk: ResNet with bottleneck blocks and frozen batch norms.

Names of weights are torchvision's. But torchvision's class needs at least 64 channels, more than
the small preset has, and its frozen norm computes in the network's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Pixel statistics of ImageNet, for values in 0..1."""


class ImageFeatures(NamedTuple):
    """Hold the maps of a frame at strides 4, 8, 16 and 32: [1,channels,height,width]."""

    res2: Tensor
    res3: Tensor
    res4: Tensor
    res5: Tensor


class FrozenBatchNorm(nn.Module):
    """Apply batch norm with fixed statistics, as one scale and one shift per channel.

    Statistics and weights stay in float32 (``precision.py``); only the two results are rounded.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B,C,H,W]; shape and type do not change."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3 and 1x1 convolutions with a residual connection."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.bn3 = FrozenBatchNorm(outer)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), FrozenBatchNorm(outer))
            if stride > 1 or inner != outer
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map [B,4*width,H/stride,W/stride] of [B,inner,H,W]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Compute maps at strides 4, 8, 16 and 32."""

    def __init__(self, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        inner = width
        for stage, count in enumerate(blocks):
            inside = width << stage
            layers = []
            for block in range(count):
                layers.append(Bottleneck(inner, inside, 2 if stage and not block else 1))
                inner = 4 * inside
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> ImageFeatures:
        """Return the maps of normalised frames [B,3,H,W], H and W multiples of 32."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, padding=1)
        maps = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return ImageFeatures(*maps)


class NormalisedTrunk(nn.Module):
    """Normalise a frame's pixels in float32, then run the trunk ``body``."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: ResNet) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def forward(self, frame: Tensor) -> ImageFeatures:
        """Return the maps of frames uint8 [B,H,W,3]."""
        pixels = frame.to(self.mean.dtype) / 255
        pixels = ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.body(pixels.to(self.body.conv1.weight.dtype))
