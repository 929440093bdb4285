"""Read RGB frames without a header from standard input, a FIFO or a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rvos_deploy.errors import VideoError
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import STANDARD_INPUT, kind_of, name_of
from rvos_deploy.video.sources.base import (
    End,
    OpenedSource,
    SourceRequest,
    SourceType,
    first_frame,
    joined,
)
from rvos_deploy.video.sources.container import Readable
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.pipe import standard_input
from rvos_deploy.video.sources.raw_format import RawFormat
from rvos_deploy.video.sources.selection import Selector

RAW_FORMAT = "raw"
"""Takes the place of a demuxer's name where the user gives the format of raw frames."""


def _open(request: SourceRequest, errors: DecodeErrors) -> OpenedSource:
    raw, selector, name = request.raw, request.selection.selector(), name_of(request.name)
    assert raw is not None
    with ExitStack() as undo:
        file, size = _opened(request.name, undo)
        frames = _frames(file, raw, selector, errors)
        first = first_frame(frames, errors, selector, f"{name}, raw {raw.width}x{raw.height},")
        release = undo.pop_all().close
    total = None if size is None else size // raw.frame_bytes
    info = VideoInfo(
        raw.width,
        raw.height,
        request.selection.rate(float(raw.fps)),
        request.selection.count(total, float(raw.fps)),
        name,
        1 / raw.fps,
        first.pts,
    )
    end: End = "unknown" if size is None else "known"
    return OpenedSource(info, joined(first, frames), release=release, end=end)


def _opened(name: str, undo: ExitStack) -> tuple[Readable, int | None]:
    """Open the bytes, and return their number if they have an end. Raises VideoError."""
    if name == STANDARD_INPUT:
        return standard_input(), None
    try:
        # Unbuffered, as in pipe.py: a pipe is read as it arrives.
        file = undo.enter_context(Path(name).open("rb", buffering=0))  # noqa: SIM115
        size = Path(name).stat().st_size if kind_of(name) == "file" else None
    except FileNotFoundError:
        raise VideoError(
            f"there is no file {name}; check the path (here is {Path.cwd()})"
        ) from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{name} cannot be read: {getattr(error, 'strerror', error)}") from error
    return file, size


def _frames(
    file: Readable, raw: RawFormat, selector: Selector, errors: DecodeErrors
) -> Iterator[Frame]:
    selector.zero, index = 0.0, 0
    while not selector.done:
        try:
            data = _read_exactly(file, raw.frame_bytes)
        except OSError as error:
            errors.stop(f"reading stopped after {index} frames: {error.strerror}")
            return
        if len(data) < raw.frame_bytes:
            if data:
                errors.stop(
                    f"after {index} frames, {len(data)} bytes are left, and a frame of "
                    f"{raw.width}x{raw.height} has {raw.frame_bytes}; check the size in --raw"
                )
            return
        pts = float(index / raw.fps)
        if selector.choose(index, pts) == "take":
            image = np.frombuffer(data, np.uint8).reshape(raw.height, raw.width, 3)
            yield Frame(index, pts, image, float(1 / raw.fps))
        index += 1


def _read_exactly(file: Readable, size: int) -> bytearray:
    """Return ``size`` bytes, or fewer at the end."""
    data = bytearray()
    while len(data) < size and (part := file.read(size - len(data))):
        data += part
    return data


RAW = SourceType(lambda name, format: format == RAW_FORMAT, _open, live=True)
