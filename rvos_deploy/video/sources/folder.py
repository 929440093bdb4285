"""Read a folder of images as a video."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.images import displayed_size, read_rgb
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import is_kind, name_of
from rvos_deploy.video.sources.base import (
    OpenedSource,
    SourceRequest,
    SourceType,
    first_frame,
    joined,
)
from rvos_deploy.video.sources.decode_errors import DecodeErrors

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif")


def image_files(folder: Path) -> list[Path]:
    """List a folder's images in natural order (2.png before 10.png); VideoError without images."""
    try:
        files = [path for path in folder.iterdir() if _is_named_as_image(path)]
    except OSError as error:
        raise VideoError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not files:
        kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise VideoError(f"the folder {folder} holds no image; put frames there ({kinds})")
    return sorted(files, key=lambda path: natural_key(path.name))


def _is_named_as_image(path: Path) -> bool:
    # Other programs leave names with a leading dot (macOS writes ._0001.jpg beside 0001.jpg). A
    # FIFO or a broken link is kept: reading it reports that its frame is missing.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Return a sort key that compares runs of digits as numbers; the name itself breaks ties."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.lower())
    digits = "0123456789"
    key = [(False, int(p), "") if p[0] in digits else (True, 0, p) for p in parts]
    return key, name


def check_sizes(files: Sequence[Path]) -> None:
    """Check that all images have one size, from their headers. Raises VideoError if they differ."""
    first: tuple[Path, tuple[int, int]] | None = None
    for path in files:
        try:
            size = displayed_size(path)
        except InputError:
            continue  # reported when the image is read
        first = first or (path, size)
        if size != first[1]:
            raise VideoError(
                f"{path} is {size[0]}x{size[1]}, but {first[0].name} is {first[1][0]}x{first[1][1]}"
                "; the images of a folder must have one size: resize or remove it"
            )


@dataclass(frozen=True)
class _Picture:
    index: int
    name: str
    path: Path


def open_images(
    request: SourceRequest, files: Mapping[str, Path], errors: DecodeErrors
) -> OpenedSource:
    """Open pictures as the frames of a video: picture i is at i / ``fps`` seconds.

    Args:
        request: the source.
        files: the pictures, by the names that their frames keep.
        errors: log of problems.

    Raises:
        InputError: no picture is selected.
        VideoError: sizes differ, or no picture can be decoded.
    """
    # As a fraction, the float 29.97 has a denominator of 15 digits, which no clock has.
    shown, fps = request.name, request.fps.limit_denominator(1001)
    selector = request.selection.selector()
    selector.zero = 0.0
    chosen = [
        _Picture(index, name, path)
        for index, (name, path) in enumerate(files.items())
        if selector.choose(index, float(index / fps)) == "take"
    ]
    check_sizes([picture.path for picture in chosen])
    frames = _decoded(chosen, fps, errors, skip=request.skip_damage)
    first = first_frame(frames, errors, selector, shown)
    info = VideoInfo(
        first.width,
        first.height,
        request.selection.rate(float(fps)),
        len(chosen),
        name_of(request.name),
        1 / fps,
        first.pts if request.selection.start else 0.0,
    )
    return OpenedSource(info, joined(first, frames))


def _decoded(
    pictures: Sequence[_Picture], fps: Fraction, errors: DecodeErrors, *, skip: bool
) -> Iterator[Frame]:
    """Yield one frame per picture; log problems in ``errors``."""
    count = 0
    for picture in pictures:
        try:
            image = read_rgb(picture.path)
        except InputError as error:
            if count and not skip:
                errors.stop(f"reading stopped after {count} frames: {error}")
                return
            errors.remark(str(error))
            continue
        pts = float(picture.index / fps)
        yield Frame(picture.index, pts, image, float(1 / fps), picture.name)
        count += 1


def _open(request: SourceRequest, errors: DecodeErrors) -> OpenedSource:
    files = image_files(Path(request.name))
    return open_images(request, {file.name: file for file in files}, errors)


FOLDER = SourceType(is_kind("folder"), _open)
