"""Convert decoded pictures for display: aspect, colour, dynamic range, transparency, rotation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from rvos_deploy.errors import VideoError
from rvos_deploy.images import over_white, oversize
from rvos_deploy.video.ffmpeg import SWSCALE_THREADS
from rvos_deploy.video.frames import Image
from rvos_deploy.video.sources.tone_mapping import HDR_TRANSFERS, tone_map

# A larger ratio means a damaged header, and would need gigabytes per frame.
_LARGEST_ASPECT = 16


class Orientation(NamedTuple):
    """Describe how a picture is turned for display: transpose first, then mirror."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: Image) -> Image:
        """Turn ``image`` [H, W, 3] into a contiguous array; return ``image`` if nothing changes."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        if self.flip_x:
            image = image[:, ::-1]
        if self.flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)


def orientation_of(matrix: Sequence[int]) -> Orientation:
    """Read a display matrix: nine integers, in the order of FFmpeg's libavutil/display.h.

    A coded point (x, y) is displayed at (a x + c y, b x + d y) with a, b, c, d = matrix[0, 1, 3,
    4]. Angles are rounded to multiples of 90 degrees.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(flip_x=a < 0, flip_y=d < 0)


def _unnamed_type(cls: type[Type], value: int) -> Type:
    member = object.__new__(cls)
    vars(member).update(_name_=f"UNNAMED_{value}", _value_=value)
    return member


# PyAV's enum of side data is older than its FFmpeg (EXIF is missing, for example). A frame with one
# unknown kind then loses all its side data, even its display matrix. Python's Enum calls this
# method for unknown values.
Type._missing_ = classmethod(_unnamed_type)  # type: ignore[assignment]


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation in a decoded frame's side data; without side data, upright.

    FFmpeg makes the display matrix from the container's rotation and from EXIF.
    """
    for data in cast("Iterable[SideData]", frame.side_data):
        if data.type is Type.DISPLAYMATRIX:
            return orientation_of(np.frombuffer(bytes(data), np.int32).tolist())
    return Orientation()


class Display:
    """Convert decoded frames into RGB images of one size: the displayed size of the first frame.

    All masks of a video have one size. So a stream that changes its resolution (adaptive streaming
    does) is scaled to the first size, in the swscale call that converts colours.
    """

    def __init__(
        self, sample_aspect_ratio: Fraction | None, size: tuple[int, int] | None = None
    ) -> None:
        """Start with the stream's pixel aspect.

        Args:
            sample_aspect_ratio: of the stream.
            size: displayed (width, height), if an earlier connection has set it.
        """
        aspect = Fraction(sample_aspect_ratio or 1)
        believable = Fraction(1, _LARGEST_ASPECT) <= aspect <= _LARGEST_ASPECT
        self._aspect = aspect if believable else Fraction(1)
        self.size = size
        """Displayed (width, height) of all frames; None before the first one."""
        # All frames share one reformatter, because each new one sets swscale up again.
        self._reformatter = VideoReformatter()

    def to_rgb(self, frame: VideoFrame) -> Image:
        """Return uint8 [H, W, 3], RGB.

        Raises:
            av.FFmpegError: swscale cannot read the pixel format.
            VideoError: the picture is too large.
        """
        orientation = frame_orientation(frame)
        width, height = self._unturned_size(frame, orientation)
        if problem := oversize(width, height) or oversize(frame.width, frame.height):
            raise VideoError(problem)
        transfer = HDR_TRANSFERS.get(int(frame.color_trc))
        if transfer is not None:  # no format has both transparency and high dynamic range
            signal = self._reformatter.reformat(
                frame, width=width, height=height, format="rgb48le", threads=SWSCALE_THREADS
            )
            return orientation.apply(
                tone_map(cast("NDArray[np.uint16]", signal.to_ndarray()), transfer)
            )
        transparent = frame.format.has_palette or any(c.is_alpha for c in frame.format.components)
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if transparent else "rgb24",
            threads=SWSCALE_THREADS,
        )
        image = cast(Image, converted.to_ndarray())
        return orientation.apply(over_white(image) if transparent else image)

    def _unturned_size(self, frame: VideoFrame, orientation: Orientation) -> tuple[int, int]:
        if self.size is None:
            size = max(1, round(frame.width * self._aspect)), frame.height
            self.size = size[::-1] if orientation.transpose else size
        return self.size[::-1] if orientation.transpose else self.size
