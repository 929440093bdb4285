"""The space that an object moves in, and the path that it takes there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DRIFT = 0.03
"""The camera drifts by at most this part of the frame's width and height."""


@dataclass(frozen=True)
class Room:
    """Where an object may move: a frame of width x height pixels; ``radius`` of the object, in
    pixels.
    """

    width: int
    height: int
    frames: int
    radius: float

    @property
    def clock(self) -> Array:
        """Time of each frame, 0 .. 1, float64 [frames]."""
        return np.linspace(0, 1, self.frames)

    def pad(self, size: float) -> float:
        """Return how far from the border a centre stays, so that drift does not push the object
        out.
        """
        return self.radius + DRIFT * size

    def free(self, size: float) -> float:
        """Return the part of ``size`` that a centre may cross."""
        return (size - 2 * self.pad(size)) / size


@dataclass(frozen=True)
class Path:
    """Where an object is and how large: centres float64 [T, 2] (x, y, pixels), scales float64 [T]
    in 0 .. 1.
    """

    centres: Array
    scales: Array
