"""Find the box around a mask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class MaskBox(NamedTuple):
    """Hold a box in pixels, in the order of COCO."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice[int, int, int], slice[int, int, int]]:
        """Return the rows and columns of the box."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def mask_box(mask: NDArray[np.bool_]) -> MaskBox | None:
    """Return the smallest box around a mask, bool [H, W]; None if the mask is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return MaskBox(left, top, right - left, bottom - top)
