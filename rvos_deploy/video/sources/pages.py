"""Read files of several pictures that FFmpeg cannot read: animated WebP, TIFF with pages."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from rvos_deploy.errors import InputError
from rvos_deploy.images import read_pictures
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import name_of
from rvos_deploy.video.sources.base import OpenedSource, SourceRequest, first_frame, joined
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.selection import Selector

SUFFIXES = (".webp", ".tif", ".tiff")
"""Suffixes of the files that are read here, if they hold more than one picture."""

_TIME_BASE = Fraction(1, 1000)


def open_pages(request: SourceRequest, total: int, errors: DecodeErrors) -> OpenedSource:
    """Open a file of ``total`` pictures as a video.

    A picture lasts as long as the file says; pages, which have no time, follow at ``request.fps``.

    Raises:
        InputError: no picture is selected.
        VideoError: no picture can be decoded.
    """
    path, fps, selector = Path(request.name), float(request.fps), request.selection.selector()
    frames = _frames(path, 1 / fps, selector, errors)
    first = first_frame(frames, errors, selector, name_of(request.name))
    rate = fps if first.duration is None else 1 / first.duration
    info = VideoInfo(
        first.width,
        first.height,
        request.selection.rate(rate),
        request.selection.count(total, rate),
        name_of(request.name),
        _TIME_BASE,
        first.pts if request.selection.start else 0.0,
    )
    return OpenedSource(info, joined(first, frames))


def _frames(path: Path, pause: float, selector: Selector, errors: DecodeErrors) -> Iterator[Frame]:
    pts, count, size = 0.0, 0, None
    try:
        for index, (image, seconds) in enumerate(read_pictures(path)):
            duration = seconds or pause
            size = size or image.shape
            if image.shape != size:
                errors.stop(
                    f"reading stopped after {index} frames: picture {index} is "
                    f"{image.shape[1]}x{image.shape[0]}, but the first one {size[1]}x{size[0]}"
                )
                return
            choice = selector.choose(index, pts)
            if choice == "take":
                yield Frame(index, pts, image, duration)
            if choice == "end" or selector.done:
                return
            pts, count = pts + duration, index + 1
    except InputError as error:
        errors.stop(f"reading stopped after {count} frames: {error}")
