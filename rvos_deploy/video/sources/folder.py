"""Read a folder of images as a video."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.images import displayed_size, read_rgb
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import is_kind
from rvos_deploy.video.sources.base import Opened, SourceRequest, SourceType, first_frame
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


def decode_images(
    files: Sequence[Path], fps: Fraction, errors: DecodeErrors, *, skip: bool
) -> Iterator[Frame]:
    """Yield one frame per file, file i at i / ``fps`` seconds; log problems in ``errors``."""
    index = 0
    for position, path in enumerate(files):
        try:
            image = read_rgb(path)
        except InputError as error:
            if index and not skip:
                errors.stop(f"reading stopped after {index} frames: {error}")
                return
            errors.remark(str(error))
            continue
        yield Frame(index, float(position / fps), image, float(1 / fps), path.name)
        index += 1


def read_images(
    request: SourceRequest, files: list[Path], errors: DecodeErrors
) -> Generator[Opened | Frame, None, None]:
    """Read pictures as the frames of a video, as ``SourceType.read`` requires.

    Raises:
        VideoError: sizes differ, or no picture can be decoded.
    """
    # As a fraction, the float 29.97 has a denominator of 15 digits, which no clock has.
    path, fps = Path(request.name), request.fps.limit_denominator(1001)
    files = files[: request.max_frames]
    check_sizes(files)
    frames = decode_images(files, fps, errors, skip=request.skip_damage)
    first = first_frame(frames, errors, str(path))
    name = path.resolve().name
    yield Opened(VideoInfo(first.width, first.height, float(fps), len(files), name, 1 / fps))
    yield first
    del first  # a frame is large
    yield from frames


def _read(request: SourceRequest, errors: DecodeErrors) -> Generator[Opened | Frame, None, None]:
    yield from read_images(request, image_files(Path(request.name)), errors)


FOLDER = SourceType(is_kind("folder"), _read)
