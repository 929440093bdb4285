"""Define frames, and the header information of a video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from os import PathLike
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError

Image = NDArray[np.uint8]
"""Pixels on the host: uint8 [H, W, 3], RGB."""


class DLPackExport(Protocol):
    """Describe the method ``__dlpack__`` of an array."""

    def __call__(self, *, stream: int | None = None) -> object:
        """Return a capsule."""


class DLPackArray(Protocol):
    """Describe an array that other libraries read through DLPack; it may lie on a device."""

    @property
    def __dlpack__(self) -> DLPackExport:
        """Return the method that the reader calls for a capsule."""


class CudaArray(Protocol):
    """Describe an array on a GPU that is read through the CUDA array interface."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, object]:
        """Return address, shape and type."""


AnyImage: TypeAlias = Image | DLPackArray | CudaArray
"""Pixels on the host or on a device: uint8 [H, W, 3], RGB."""


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """Hold one frame as a viewer sees it.

    Args:
        index: the frame's number in its source, from 0. Frames that were not selected or were
            dropped leave gaps.
        pts: presentation time in seconds on the container's own clock. The first frame of a video
            need not be at 0.
        image: uint8 [H, W, 3], RGB: a NumPy array, or an array of any library that has
            ``__dlpack__`` or ``__cuda_array_interface__``, on the host or on a device.
        duration: duration in seconds, or None if the source does not state it.
        name: name of the frame's own file where the source has one for each frame (a folder, a
            glob), else None.
        dropped: number of earlier frames that the source dropped because they were stale. A
            dropped frame keeps its index, so indices show which frames are missing.

    Raises:
        InputError: a value has another form. A stream checks an array whose shape and type are
            known only after reading.
    """

    index: int
    pts: float
    image: AnyImage
    duration: float | None = None
    name: str | None = None
    dropped: int = 0
    _size: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        size = check_any_image(self.image)
        object.__setattr__(self, "_size", size)
        if self.index < 0:
            raise InputError(f"a frame's index counts from 0, found {self.index}")
        if not math.isfinite(self.pts):
            raise InputError(f"a frame's pts must be a finite number of seconds, found {self.pts}")
        if self.duration is not None and not 0 <= self.duration < math.inf:
            raise InputError(
                f"a frame's duration cannot be {self.duration} s; pass None if unknown"
            )

    @property
    def height(self) -> int:
        """Return the rows of the image. Raises InputError: the image does not state its shape."""
        return self._known_size()[0]

    @property
    def width(self) -> int:
        """Return the columns of the image. Raises InputError: it does not state its shape."""
        return self._known_size()[1]

    @property
    def has_image(self) -> bool:
        """Tell whether the frame has an image; see :meth:`without_image`."""
        return "image" in vars(self)

    def without_image(self) -> Frame:
        """Return the frame without its pixels: index, times and size only.

        Reading ``image`` of the returned frame raises InputError.
        """
        bare = copy(self)
        vars(bare).pop("image", None)
        return bare

    def with_image(self, image: AnyImage) -> Frame:
        """Return the frame with other pixels."""
        return replace(self, image=image)

    def with_dropped(self, dropped: int) -> Frame:
        """Return the frame with another number of dropped frames."""
        changed = copy(self)
        object.__setattr__(changed, "dropped", dropped)
        return changed

    def host_image(self) -> Image:
        """Return the image as a NumPy array, copied from a device if needed.

        Raises:
            InputError: the image lies on a device and cannot be copied by NumPy, as PyTorch's
                tensors. Images from a stream's results can.
        """
        if isinstance(self.image, np.ndarray):
            return self.image
        try:
            return check_image(np.asarray(self.image))
        except (InputError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the image of frame {self.index} is a {type(self.image).__name__} that cannot be "
                "read on the host; copy it first (PyTorch: image.cpu().numpy())"
            ) from error

    if not TYPE_CHECKING:  # type checkers would accept any name as an attribute

        def __getattr__(self, name: str) -> object:
            if name == "image":
                raise InputError(
                    f"the stream did not keep the image of frame {self.index}; open it with "
                    "segmenter.stream(..., keep_images=True), or keep the frame that was pushed"
                )
            raise AttributeError(f"'Frame' object has no attribute '{name}'")

    def __repr__(self) -> str:
        return (
            f"Frame(index={self.index}, pts={self.pts:.6g}, image={self._describe_image()}, "
            f"duration={self.duration}" + (f", name={self.name!r})" if self.name else ")")
        )

    def _describe_image(self) -> str:
        if not self.has_image:
            return "not kept"
        shape = "x".join(map(str, (*self._size, 3))) if self._size else "?"
        kind = "" if isinstance(self.image, np.ndarray) else f"{type(self.image).__name__} "
        return f"{kind}uint8[{shape}]"

    def _known_size(self) -> tuple[int, int]:
        if self._size is None:
            raise InputError(
                f"the image of frame {self.index}, a {type(self.image).__name__}, does not tell "
                "its shape"
            )
        return self._size


@dataclass(frozen=True)
class VideoInfo:
    """Hold the information on a video that is known before its frames are read.

    Args:
        width: width of the frames after sample aspect ratio and rotation.
        height: height of the frames after sample aspect ratio and rotation.
        average_fps: frames per second; None: unknown.
        frame_count: an estimate from the header, which may be wrong; use it for progress bars only.
        name: name of the video, for people.
        time_base: unit of the source's timestamps, in seconds.
        clock_start: time (seconds) on the source's clock at which a player starts: 0 for files such
            as MP4, whose first frame may be late on purpose; the first frame's pts for transport
            streams and cameras, whose clock started earlier.
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


def bgr_to_rgb(image: Image) -> Image:
    """Return an image of OpenCV, uint8 [H, W, 3] in BGR, as RGB.

    The channels are reversed in a copy. ``image[..., ::-1]`` is the same without a copy.

    Raises InputError: the image has another shape or type.
    """
    return np.ascontiguousarray(check_image(image)[..., ::-1])


def check_image(image: object, size: tuple[int, int] | None = None) -> Image:
    """Return the image. Raises InputError: it is not uint8 [H, W, 3], or not of ``size`` (H, W)."""
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"an image must be a NumPy array, uint8 [H, W, 3] (RGB), found {type(image).__name__}; "
            f"{_to_array(image)}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(_refusal("an image", str(image.dtype), image.shape))
    if size is not None and image.shape[:2] != size:
        raise InputError(
            f"an image of {image.shape[1]}x{image.shape[0]} was given to a video of "
            f"{size[1]}x{size[0]}; resize it first"
        )
    return image


def _to_array(image: object) -> str:
    """Return how an object becomes an array."""
    if isinstance(image, (str, bytes, PathLike)):
        return "read files with rvos_deploy.read_video(file)"
    if hasattr(image, "convert"):  # Pillow
        return "pass np.asarray(image.convert('RGB'))"
    return "pass np.asarray(image)" if hasattr(image, "__len__") else "pass an array"


def _refusal(what: str, dtype: str, shape: Sequence[int] | None) -> str:
    """Return the line about an image of another form, with the expression that converts it."""
    found = dtype if shape is None else f"{dtype} {list(shape)}"
    line = f"{what} must be uint8 [H, W, 3] (RGB), found {found}"
    if shape is not None and 0 in shape:
        return f"{line}; it has no pixels"
    if (converted := _reshaped(shape)) is None:
        return f"{line}; push one image at a time"
    note = ""
    if dtype.startswith(("float", "bfloat")):
        converted = f"({converted} * 255).round().astype(np.uint8)"
        note = " if its values are 0 to 1"
    elif dtype in ("uint16", "int16", "int32"):
        converted = f"({converted} >> 8).astype(np.uint8)"
        note = " if its values have 16 bits"
    elif dtype == "bool":
        converted = f"{converted} * np.uint8(255)"
    elif dtype != "uint8":
        converted = f"{converted}.astype(np.uint8)"
    return f"{line}; pass {converted}{note}"


def _reshaped(shape: Sequence[int] | None) -> str | None:
    """Return the expression that makes [H, W, 3] of ``image``; None: it is not one image."""
    channels = None if shape is None else shape[-1] if len(shape) == 3 else 0
    if channels in (None, 3):
        return "image"
    if shape is not None and len(shape) == 2:
        return "np.repeat(image[..., None], 3, axis=2)"  # grey
    if shape is not None and len(shape) == 4 and shape[0] == 1:
        return "image[0]"
    if channels in (1, 2):  # grey, grey with transparency
        return "np.repeat(image[..., :1], 3, axis=2)"
    if channels == 4:
        return "image[..., :3]"  # transparency is dropped
    if shape is not None and len(shape) == 3 and shape[0] == 3:
        return "image.transpose(1, 2, 0)"  # channels first
    return None


def is_foreign(image: object) -> TypeGuard[DLPackArray | CudaArray]:
    """Tell whether an image is another library's array, which may lie on a device."""
    if isinstance(image, np.ndarray):
        return False
    return hasattr(image, "__dlpack__") or hasattr(image, "__cuda_array_interface__")


def check_any_image(image: object) -> tuple[int, int] | None:
    """Check an image on the host or on a device.

    Returns:
        (height, width), or None if another library's array does not state its shape.

    Raises:
        InputError: the image is not uint8 [H, W, 3], as far as it states its shape and type.
    """
    if not is_foreign(image):
        height, width, _ = check_image(image).shape
        return height, width
    interface = getattr(image, "__cuda_array_interface__", None) or {}
    shape = getattr(image, "shape", interface.get("shape"))
    # "torch.uint8", NumPy's and CuPy's dtype("uint8"), "|u1" of the interface.
    dtype = str(getattr(image, "dtype", interface.get("typestr", "uint8"))).rpartition(".")[2]
    dtype = "uint8" if dtype == "|u1" else dtype
    shape = None if shape is None else [int(side) for side in shape]
    wrong = shape is not None and (len(shape) != 3 or shape[2] != 3 or 0 in shape)
    if dtype != "uint8" or wrong:
        raise InputError(_refusal("a frame", dtype, shape))
    return None if shape is None else (shape[0], shape[1])
