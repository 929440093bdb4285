"""What a video is made of here: its frames, and what its header says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError

Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """One frame as a viewer sees it.

    ``index`` counts from 0. ``pts`` is the time of display in seconds on the container's own clock
    (the first frame of a video need not be at 0). ``image`` is uint8 [H, W, 3], RGB. ``duration``
    is in seconds, or None where the source does not say. Raises InputError for anything else.
    """

    index: int
    pts: float
    image: Image
    duration: float | None = None

    def __post_init__(self) -> None:
        check_image(self.image)
        if self.index < 0:
            raise InputError(f"a frame's index counts from 0, found {self.index}")
        if not math.isfinite(self.pts):
            raise InputError(f"a frame's pts must be a finite number of seconds, found {self.pts}")
        if self.duration is not None and not 0 <= self.duration < math.inf:
            raise InputError(
                f"a frame's duration cannot be {self.duration} s; give None if unknown"
            )

    @property
    def height(self) -> int:
        """Rows of the image."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Columns of the image."""
        return int(self.image.shape[1])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image.shape))
        return (
            f"Frame(index={self.index}, pts={self.pts:.6g}, "
            f"image={self.image.dtype}[{shape}], duration={self.duration})"
        )


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before its frames are read.

    ``width`` and ``height`` are those of the frames that come out: after sample aspect ratio and
    rotation. ``frame_count`` is an estimate from the header, good for a progress bar only: headers
    lie. ``time_base`` is the unit of the source's timestamps, in seconds. ``clock_start`` (seconds)
    is where the source's clock stands when a player starts it: 0 for files such as MP4, whose late
    first frame is meant, and the first frame's pts for transport streams and cameras, whose clock
    started long before.
    """

    width: int
    height: int
    average_fps: float | None
    frame_count: int | None
    name: str
    time_base: Fraction
    clock_start: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"a video cannot be {self.width}x{self.height}; sizes start at 1x1")
        if self.time_base <= 0:
            raise InputError(f"a time base must be above 0 s, found {self.time_base}")


def check_image(image: object, size: tuple[int, int] | None = None) -> Image:
    """Return the image. Raises InputError: not uint8 [H, W, 3], or not of ``size`` (H, W)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        found = getattr(image, "dtype", type(image).__name__)
        raise InputError(f"an image must be a uint8 array, found {found}; convert it first")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"an image must be [H, W, 3] (RGB), found {list(image.shape)}")
    if size is not None and image.shape[:2] != size:
        raise InputError(
            f"an image of {image.shape[1]}x{image.shape[0]} was given to a video of "
            f"{size[1]}x{size[0]}; resize it first"
        )
    return image
