"""A folder of images as a video."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from rvos_deploy.errors import VideoError
from rvos_deploy.video.damage import Damage
from rvos_deploy.video.frames import Frame, Image
from rvos_deploy.video.geometry import over_white

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

# What Pillow raises for a file that is no image, is cut short, or would unpack to gigabytes.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError)
_EXIF_ORIENTATION, _FIRST_TURNED = 0x0112, 5


def image_files(folder: Path) -> list[Path]:
    """List a folder's images in natural order (2.png before 10.png). Raises VideoError if none."""
    try:
        files = [path for path in folder.iterdir() if _is_image(path)]
    except OSError as error:
        raise VideoError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not files:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise VideoError(f"the folder {folder} holds no image; put frames there ({kinds})")
    return sorted(files, key=lambda path: natural_key(path.name))


def _is_image(path: Path) -> bool:
    # Names with a leading dot are other programs' leavings (macOS writes ._0001.jpg beside
    # 0001.jpg).
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key that compares runs of digits as numbers; the name itself decides between equals."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.lower())
    digits = "0123456789"
    key = [(False, int(p), "") if p[0] in digits else (True, 0, p) for p in parts]
    return key, name


def check_sizes(files: Sequence[Path]) -> None:
    """Raise VideoError naming the first image whose size differs; only headers are read."""
    first: tuple[Path, tuple[int, int]] | None = None
    for path in files:
        size = _displayed_size(path)
        if size is None:
            continue  # damaged: reported when its turn comes
        first = first or (path, size)
        if size != first[1]:
            raise VideoError(
                f"{path} is {size[0]}x{size[1]}, but {first[0].name} is {first[1][0]}x{first[1][1]}"
                "; the images of a folder must have one size: resize or remove it"
            )


def _displayed_size(path: Path) -> tuple[int, int] | None:
    try:
        with Pillow.open(path) as image:
            turned: bool = image.getexif().get(_EXIF_ORIENTATION, 1) >= _FIRST_TURNED
            width, height = image.size
            return (height, width) if turned else (width, height)
    except _IMAGE_ERRORS:
        return None


def load_image(path: Path) -> Image:
    """Read an image as displayed (EXIF rotation, transparency over white): uint8 [H, W, 3]."""
    with Pillow.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it to 255
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        return over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def decode_folder(
    files: Sequence[Path], fps: Fraction, damage: Damage, *, skip: bool
) -> Iterator[Frame]:
    """Yield one frame a file, file i at i / ``fps`` seconds; what is wrong goes to ``damage``."""
    index = 0
    for position, path in enumerate(files):
        try:
            image = load_image(path)
        except _IMAGE_ERRORS as error:
            text = f"{path.name} could not be read: {' '.join(str(error).split())}"
            if index and not skip:
                damage.stop(f"reading stopped after {index} frames: {text}")
                return
            damage.remark(text)
            continue
        yield Frame(index, float(position / fps), image, float(1 / fps))
        index += 1
