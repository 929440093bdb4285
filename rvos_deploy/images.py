"""Open untrusted image files: known formats, bounded sizes, regular files only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from rvos_deploy.errors import InputError

Pixels = NDArray[np.uint8]

# By default, Pillow tries every format that it knows, and starts Ghostscript for PostScript.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
if find_spec("PIL.AvifImagePlugin"):  # Pillow 11.3 and newer
    FORMATS += ("AVIF",)
_ANIMATED = {"PNG", "WEBP", "TIFF", "AVIF"}

MAX_SIDE = 16_384
"""Maximum side of an image or video frame: the limit of the overlay's encoder (H.264)."""

MAX_PIXELS = 2**28 // 3
"""Maximum pixels of an image or video frame: 256 MiB of RGB, almost three times 8K video. Pillow
warns above this number."""

_LIMITS = f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all can be read"
_TIFF_WIDTH, _TIFF_HEIGHT, _EXIF_ORIENTATION = 0x0100, 0x0101, 0x0112
_FIRST_TRANSPOSED = 5  # EXIF orientations from this one on swap width and height


def oversize(width: int, height: int) -> str | None:
    """Return why pictures of this size are refused, or None if they are accepted."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        return f"{width}x{height} is too large: {_LIMITS}"
    return None


def count_pictures(path: Path) -> int:
    """Return how many pictures a file in one of FORMATS holds, from its header; 0: another file."""
    try:
        with _regular_file(path) as file, Image.open(file, formats=FORMATS) as image:
            # A JPEG with several pictures shows the first one; the others are previews.
            return _count(image) if image.format in _ANIMATED else 1
    except Image.DecompressionBombError:
        return 1
    except Exception:  # Pillow raises many types for bytes that do not match their format
        return 0


def _count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damaged behind the first picture
        return 2


def displayed_size(path: Path) -> tuple[int, int]:
    """Return the displayed (width, height), after EXIF rotation, from the header.

    Raises:
        InputError: the file is missing, not an image, too large or damaged.
    """
    with _opened(path) as image:
        # Newer versions of Pillow swap the sides of a turned TIFF, but keep its tags.
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        width, height = tags.get(_TIFF_WIDTH, image.width), tags.get(_TIFF_HEIGHT, image.height)
        transposed = image.getexif().get(_EXIF_ORIENTATION, 1) >= _FIRST_TRANSPOSED
    return (int(height), int(width)) if transposed else (int(width), int(height))


def read_image(path: Path) -> Image.Image:
    """Decode an image as stored: its own mode and palette, not rotated.

    Raises:
        InputError: the file is missing, not an image, too large or damaged.
    """
    with _opened(path) as image:
        image.load()
    return image


def read_rgb(path: Path) -> Pixels:
    """Decode an image as displayed (EXIF rotation, transparency over white): uint8 [H, W, 3].

    Raises:
        InputError: the file is missing, not an image, too large or damaged.
    """
    with _opened(path) as file:
        return _displayed(file)


def decode_rgb(data: bytes, name: str, most_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode the bytes of an image file as :func:`read_rgb`. ``name``: of the image, for errors.

    Raises:
        InputError: the bytes are not an image, too large or damaged.
    """
    with _errors(name), Image.open(BytesIO(data), formats=FORMATS) as file:
        width, height = file.size
        if width * height > most_pixels:
            raise InputError(
                f"{name} has {width}x{height} pixels, at most {most_pixels} are accepted; make it "
                "smaller"
            )
        return _displayed(file)


def read_pictures(path: Path) -> Iterator[tuple[Pixels, float | None]]:
    """Decode the pictures of an animation or a file of pages, one after the other.

    Yields each picture as in :func:`read_rgb`, and for how many seconds it is shown; None: the file
    does not say.

    Raises:
        InputError: the file is missing, not an image, too large or damaged.
    """
    with _opened(path) as file:
        for number in count():
            try:
                file.seek(number)
            except EOFError:
                return
            if problem := oversize(*file.size):
                raise InputError(f"{path}, picture {number}: {problem}; make it smaller")
            pixels = _displayed(file)
            milliseconds = file.info.get("duration")
            yield pixels, milliseconds / 1000 if milliseconds else None


def _displayed(file: Image.Image) -> Pixels:
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it to 255
        grey = np.minimum(np.asarray(image).astype(np.uint32) >> 8, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        return over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def over_white(rgba: Pixels) -> Pixels:
    """Blend uint8 [H, W, 4] over white, as browsers show it, and return uint8 [H, W, 3]."""
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    weighted = colour.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return ((weighted + 127) // 255).astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; turn errors of Pillow, here and in the block, into InputError."""
    with _errors(path), _regular_file(path) as file, Image.open(file, formats=FORMATS) as image:
        if problem := oversize(*image.size):
            raise InputError(f"{path}: {problem}; make it smaller")
        yield image


@contextmanager
def _errors(name: object) -> Iterator[None]:
    """Turn errors of Pillow in the block into InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}; check the path") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {_LIMITS}; make it smaller") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise InputError(
            f"{name} is not an image that can be read ({kinds}); convert it to one of these"
        ) from error
    except Exception as error:  # Pillow's parsers raise nearly anything for hostile bytes
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{name} is damaged or unreadable: {text}; copy it again") from error


def _regular_file(path: Path) -> BinaryIO:
    """Open a regular file only: a FIFO could block without end, and a device may do anything."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a folder, device, FIFO or socket; an image file is needed")
    if status.st_size == 0:
        raise InputError(f"{path} is damaged: it is empty (0 bytes); copy it again")
    # Non-blocking, because a FIFO may have replaced the file since the check.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")
