"""Round the number of expressions and of their tokens up, so that an engine sees few sizes.

Each new size costs a plain run and a capture. Also, ahead-of-time plugins leak a CUDA module at
each change of shape of an execution context (NVIDIA/TensorRT#4849, open), so a context should keep
its shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.graph_io.graph_spec import ROWS

ROUNDED_AXES = (ROWS, "L")
"""Expressions, and tokens of a sentence. Frames' sizes and the memory's length stay as they are."""


def bucket(size: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below ``size``.

    Sizes up to four are exact; above that, padding adds less than half of the size.
    """
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power


def padded_size(profiles: Sequence[Profile], axis: str, size: int) -> int:
    """Return the bucket of a size, within every profile that supports the size.

    Args:
        profiles: of an engine.
        axis: its name.
        size: on that axis.

    Returns:
        ``size`` itself where the axis is not rounded, or no profile supports the size.
    """
    ranges = [profile[axis] for profile in profiles if axis in profile]
    limits = [most for least, _, most in ranges if least <= size <= most]
    if axis not in ROUNDED_AXES or not limits:
        return size
    return max(size, min(bucket(size), *limits))
