"""Sine positions in space and time, and the pixel centres that deformable attention starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def _interleaved_sines(angles: Tensor) -> Tensor:
    """Sine of even and cosine of odd entries: [..., D] -> [..., D]."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def _frequencies(dim: int, device: torch.device) -> Tensor:
    """Geometric frequencies, each twice (for its sine and its cosine): [dim]."""
    index = torch.arange(dim, dtype=torch.float32, device=device)
    return TEMPERATURE ** (-2 * torch.div(index, 2, rounding_mode="floor") / dim)


def sine_position_2d(
    height: int, width: int, dim: int, cycles: float, device: torch.device
) -> Tensor:
    """Position of every pixel centre: float32 [height * width, dim], first half y, second half x.

    The quickest sine makes ``cycles`` turns across the map (Mask2Former: 1; more tells
    neighbours apart better on small maps).
    """
    frequencies = _frequencies(dim // 2, device) * (2 * math.pi * cycles)
    centres = pixel_centres(height, width, device)
    y = _interleaved_sines(centres[:, 1:] * frequencies)
    x = _interleaved_sines(centres[:, :1] * frequencies)
    return torch.cat((y, x), dim=-1)


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Normalised (x, y) of every pixel centre, row by row: float32 [height * width, 2]."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    x_map = x[None, :].expand(height, width)
    y_map = y[:, None].expand(height, width)
    return torch.stack((x_map, y_map), dim=-1).flatten(0, 1)


def temporal_position(ages: Tensor, dim: int) -> Tensor:
    """Position in time of frames ``ages`` frames older than the newest: [...] -> [..., dim]."""
    return _interleaved_sines(ages.float()[..., None] * _frequencies(dim, ages.device))
