"""Compute masks by convolutions with a query's own weights (CondInst, Tian et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

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
    mask_features: Tensor, parameters: Tensor, centres: Tensor, channels: int
) -> Tensor:
    """Return the mask logits float32 [E,H/4,W/4] of one query per expression.

    Everything except the product with the mask features is float32, because coordinates reach
    hundreds of pixels.

    Args:
        mask_features: [E,C,H/4,W/4].
        parameters: float32 [E,P], of three convolutions; the first reads the mask features and then
            two coordinates, the query's centre minus the pixel's centre, in pixels of the frame.
        centres: float32 [E,2], (x, y) in 0..1.
        channels: number of channels between the convolutions.
    """
    dim, height, width = mask_features.shape[1:]
    w1, w2, w3, b1, b2, b3 = split_parameters(parameters, dim, channels)
    of_features = w1[:, :, :dim].to(mask_features.dtype) @ mask_features.flatten(2)
    of_coordinates = w1[:, :, dim:] @ _coordinates(centres, height, width)
    x = torch.relu(wide(of_features) + of_coordinates + b1[..., None])
    x = torch.relu(w2 @ x + b2[..., None])
    x = w3 @ x + b3[..., None]
    return x.squeeze(1).unflatten(1, (height, width))


def _coordinates(centres: Tensor, height: int, width: int) -> Tensor:
    """Return centres minus pixel centres, (x, y) in pixels of the frame: [E,2,H/4*W/4]."""
    x, y = (
        torch.arange(side, dtype=centres.dtype, device=centres.device) * STRIDE + STRIDE / 2
        for side in (width, height)
    )
    dx = (centres[:, 0, None] * (width * STRIDE) - x)[:, None, :].expand(-1, height, width)
    dy = (centres[:, 1, None] * (height * STRIDE) - y)[:, :, None].expand(-1, height, width)
    return torch.stack((dx, dy), dim=1).flatten(2)
