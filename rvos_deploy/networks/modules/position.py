"""Compute sine positions in space and time, and pixel centres for deformable attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def _interleaved_sines(angles: Tensor) -> Tensor:
    """Return the sine of even and the cosine of odd entries: [...,D]."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def _frequencies(dim: int, device: torch.device) -> Tensor:
    """Return geometric frequencies, each twice (for its sine and cosine): float32 [dim]."""
    index = torch.arange(dim, dtype=torch.float32, device=device)
    return TEMPERATURE ** (-2 * torch.div(index, 2, rounding_mode="floor") / dim)


def sine_position_2d(
    height: int, width: int, dim: int, cycles: float, device: torch.device
) -> Tensor:
    """Return the position of every pixel centre: float32 [height * width, dim], y before x.

    The fastest sine has ``cycles`` cycles across the map. Mask2Former has 1; more cycles separate
    neighbours better on small maps.
    """
    return sine_of_points(pixel_centres(height, width, device), dim, cycles)


def sine_of_points(centres: Tensor, dim: int, cycles: float) -> Tensor:
    """Return the position of points [N,2], (x, y) in 0..1: [N,dim]; see ``sine_position_2d``."""
    frequencies = _frequencies(dim // 2, centres.device) * (2 * math.pi * cycles)
    y = _interleaved_sines(centres[:, 1:] * frequencies)
    x = _interleaved_sines(centres[:, :1] * frequencies)
    return torch.cat((y, x), dim=-1)


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return (x, y) in 0..1 of every pixel centre, row by row: float32 [height * width, 2]."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    x_map = x[None, :].expand(height, width)
    y_map = y[:, None].expand(height, width)
    return torch.stack((x_map, y_map), dim=-1).flatten(0, 1)


def temporal_position(ages: Tensor, dim: int) -> Tensor:
    """Return the position in time [...,dim] of ages [...] in frames (0: the newest)."""
    return _interleaved_sines(ages.float()[..., None] * _frequencies(dim, ages.device))


def sine_position_1d(padding: Tensor, dim: int) -> Tensor:
    """Return the position of every token: float32 [E,L,dim].

    The tokens of a sentence are numbered from 1, and the last has the angle 2 pi. Padding repeats
    the last token's position.

    Args:
        padding: bool [E,L], True where there is no token.
        dim: width of a position.
    """
    number = torch.cumsum((~padding).to(torch.int64), dim=1).float()
    angles = number / (number[:, -1:] + 1e-6) * (2 * math.pi)
    return _interleaved_sines(angles[..., None] * _frequencies(dim, padding.device))
