"""Check heights and widths of network inputs. The command line uses it, so it imports no NumPy."""

from __future__ import annotations

from rvos_deploy.errors import InputError

STRIDE = 32
"""Stride of the coarsest feature map. Heights and widths are multiples of it."""


def check_size(height: int, width: int) -> None:
    """Raise InputError unless both are positive multiples of 32."""
    if height < STRIDE or width < STRIDE or height % STRIDE or width % STRIDE:

        def nearest(side: int) -> int:
            return max(STRIDE, round(side / STRIDE) * STRIDE)

        raise InputError(
            f"size {height}x{width} is not a multiple of {STRIDE}; "
            f"the nearest that is: {nearest(height)}x{nearest(width)}"
        )
