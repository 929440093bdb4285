"""Finding out what a source is, and opening it with FFmpeg."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from rvos_deploy.errors import VideoError
from rvos_deploy.redaction import redact
from rvos_deploy.video.decoding import READ_ERRORS, reason, use_threads

STANDARD_INPUT = "-"

# Seconds to wait for a server: without a limit, a camera that is switched off hangs the run for
# ever.
_NETWORK_TIMEOUT = 30.0
# FFmpeg "plays" any .txt as terminal output, drawn in a video of its own making.
_NOT_VIDEO = {"tty"}


class _Pipe:
    """Standard input, read as it arrives: a plain read() would wait to fill a buffer."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return cast(bytes, self._stream.read1(size))


def name_of(source: str) -> str:
    """A short name for people: no folders, and no secrets of a URL."""
    if source == STANDARD_INPUT:
        return "standard input"
    if (shown := redact(source)) != source or is_url(source):
        return shown
    return Path(source).resolve().name or source


def mending(source: str) -> str:
    """What to do about a source of which no frame can be decoded."""
    if source == STANDARD_INPUT:
        return "pipe MPEG-TS, Matroska or fragmented MP4, or give a file name"
    return "record or convert it again"


def is_url(source: str) -> bool:
    """Whether FFmpeg would read ``source`` over a protocol such as rtsp:// or https://."""
    return "://" in source


def open_container(source: str, format: str | None) -> tuple[InputContainer, VideoStream]:
    """Open ``source`` and choose its video stream. Raises VideoError with what to do instead."""
    shown = name_of(source) if source == STANDARD_INPUT else redact(source)
    _check_file(source)
    try:
        container = av.open(
            _ffmpeg_name(source),
            "r",
            format=format or ("v4l2" if source.startswith("/dev/video") else None),
            metadata_errors="replace",  # a title in Latin-1 is no reason to refuse a video
            timeout=_NETWORK_TIMEOUT if is_url(source) else None,
        )
    except (*READ_ERRORS, ValueError) as error:
        raise VideoError(_why_not_opened(source, shown, error)) from error
    try:
        stream = _video_stream(container, shown)
        use_threads(stream)
    except BaseException:
        container.close()
        raise
    return container, stream


def _check_file(source: str) -> None:
    path = Path(source)
    if source == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.isatty():
            raise VideoError(
                "nothing is piped into standard input; use `... < VIDEO`, or a file name"
            )
    elif path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{source} is empty (0 bytes); a video is needed: copy or record it again")


def _ffmpeg_name(source: str) -> Any:
    if source == STANDARD_INPUT:
        return _Pipe(sys.stdin.buffer)
    # Without "file:", FFmpeg takes what stands before a colon in a file's name for a protocol.
    return f"file:{Path(source).resolve()}" if Path(source).is_file() else source


def _why_not_opened(source: str, shown: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {shown}; check the path (here is {Path.cwd()})"
    if isinstance(error, PermissionError):
        return f"{shown} may not be read: permission denied; check its owner and mode"
    if is_url(source):
        return f"{shown} cannot be opened: {reason(error)}; check the address and the network"
    if source == STANDARD_INPUT:
        return (
            f"standard input is not a video that can be read while it arrives ({reason(error)}); "
            f"{mending(source)}"
        )
    return (
        f"{shown} is not a video that FFmpeg can read ({reason(error)}); needed: a video file, a "
        "GIF, a folder of images, a URL or a device; a video that was cut short: copy it again"
    )


def _video_stream(container: InputContainer, shown: str) -> VideoStream:
    streams = container.streams
    if container.format.name in _NOT_VIDEO:
        raise VideoError(f"{shown} is a text file; a video is needed: give a video file instead")
    # A song's cover art is a video stream to FFmpeg.
    videos = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        kinds = ", ".join(sorted({s.type for s in streams})) or "nothing"
        raise VideoError(f"{shown} has no video stream (found: {kinds}); give a file with pictures")
    best = streams.best("video")
    stream = best if best in videos else videos[0]
    if getattr(stream, "codec_context", None) is None:
        raise VideoError(
            f"{shown} uses a codec that this FFmpeg cannot decode; convert it to H.264"
        )
    return stream
