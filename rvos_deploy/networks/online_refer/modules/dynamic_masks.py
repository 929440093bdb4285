"""Compute masks by convolutions with a query's own weights (CondInst, Tian et al. 2020)."""

from __future__ import annotations

from functools import reduce
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvos_deploy.networks.modules.float32_islands import wide

STRIDE = 4
"""Stride of mask features and mask logits. [pixels]"""


def parameter_count(dim: int, channels: int) -> int:
    """Return the number of a query's parameters: weights and biases of three 1x1 convolutions."""
    return sum(_sizes(dim, channels))


def _sizes(dim: int, channels: int) -> list[int]:
    weights = [(dim + 2) * channels, channels * channels, channels]
    return [*weights, channels, channels, 1]


def split_parameters(parameters: Tensor, dim: int, channels: int) -> tuple[Tensor, ...]:
    """Return views of parameters [E,P]: three weights [E,outer,inner], three biases [E,outer]."""
    w1, w2, w3, b1, b2, b3 = parameters.split(_sizes(dim, channels), dim=1)
    w1 = w1.unflatten(1, (channels, dim + 2))
    return w1, w2.unflatten(1, (channels, channels)), w3.unflatten(1, (1, channels)), b1, b2, b3


def dynamic_masks(
    image: Tensor, projection: nn.Conv2d, parameters: Tensor, centres: Tensor, channels: int
) -> Tensor:
    """Return the mask logits float32 [E,H/4,W/4] of one query per expression.

    Everything except the product with the image is float32, because coordinates reach hundreds of
    pixels.

    Args:
        image: [E,C,H/4,W/4], the pixel decoder's map.
        projection: the 3x3 convolution, padded by zeros, that makes mask features of this map.
        parameters: float32 [E,P], of three convolutions; the first reads the mask features and then
            two coordinates, the query's centre minus the pixel's centre, in pixels of the frame.
        centres: float32 [E,2], (x, y) in 0..1.
        channels: number of channels between the convolutions.
    """
    height, width = image.shape[2:]
    w1, w2, w3, b1, b2, b3 = split_parameters(parameters, projection.out_channels, channels)
    of_features = _project(image, projection, w1[:, :, :-2])
    of_coordinates = w1[:, :, -2:] @ _coordinates(centres, height, width)
    x = torch.relu(of_features + of_coordinates + b1[..., None])
    x = torch.relu(w2 @ x + b2[..., None])
    x = w3 @ x + b3[..., None]
    return x.squeeze(1).unflatten(1, (height, width))


def _project(image: Tensor, projection: nn.Conv2d, rows: Tensor) -> Tensor:
    """Return ``rows @ projection(image)``, float32 [E,rows,H*W], without the C mask features.

    Both are linear. So the few rows [E,rows,C] are multiplied with the kernel first, and the image
    with one matrix for each of its nine places; then the nine maps are shifted and added.
    """
    height, width = image.shape[2:]
    kernel, bias = wide(projection.weight), projection.bias
    assert bias is not None
    # [E,rows,C,3,3], then [E,9*rows,C].
    combined = (rows @ kernel.flatten(1)).unflatten(2, kernel.shape[1:])
    places = combined.permute(0, 3, 4, 1, 2).flatten(1, 3).to(image.dtype)
    maps = wide(places @ image.flatten(2)).unflatten(2, (height, width))
    padded = F.pad(maps, (1, 1, 1, 1)).unflatten(1, (3, 3, -1))
    shifted = (
        padded[:, dy, dx, :, dy : dy + height, dx : dx + width]
        for dy, dx in product(range(3), repeat=2)
    )
    total = reduce(torch.add, shifted)
    return total.flatten(2) + rows @ wide(bias)[:, None]


def _coordinates(centres: Tensor, height: int, width: int) -> Tensor:
    """Return centres minus pixel centres, (x, y) in pixels of the frame: [E,2,H/4*W/4]."""
    x, y = (
        torch.arange(side, dtype=centres.dtype, device=centres.device) * STRIDE + STRIDE / 2
        for side in (width, height)
    )
    dx = (centres[:, 0, None] * (width * STRIDE) - x)[:, None, :].expand(-1, height, width)
    dy = (centres[:, 1, None] * (height * STRIDE) - y)[:, :, None].expand(-1, height, width)
    return torch.stack((dx, dy), dim=1).flatten(2)
