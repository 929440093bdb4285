"""Open a container with FFmpeg, choose its video stream, and read its frames."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from rvos_deploy.errors import VideoError
from rvos_deploy.redaction import redact
from rvos_deploy.video.ffmpeg import READ_ERRORS, reason
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import STANDARD_INPUT, hint, is_url, name_of
from rvos_deploy.video.sources.base import Opened, SourceRequest, first_frame
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.decoding import decode, promised_end
from rvos_deploy.video.sources.demuxers import Origin, input_options
from rvos_deploy.video.sources.notes import notes_on

# av.format.Flags.ts_discont: formats whose clock may start anywhere and jump.
_TS_DISCONT = 512
# FFmpeg reads any .txt as terminal output, and draws a video of it.
_NOT_VIDEO = {"tty"}


class Readable(Protocol):
    """Define an object that FFmpeg reads through Python."""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes as soon as some arrive; b"" at the end."""


@dataclass(frozen=True)
class FFmpegInput:
    """Describe a source as FFmpeg opens it.

    Args:
        file: its name for FFmpeg, or an object to read from.
        origin: where its bytes come from; decides which other files FFmpeg may open.
        format: the demuxer; None: FFmpeg finds it.
    """

    file: str | Readable
    origin: Origin
    format: str | None = None


def read_container(
    describe: Callable[[SourceRequest], FFmpegInput], request: SourceRequest, errors: DecodeErrors
) -> Generator[Opened | Frame, None, None]:
    """Open a source with FFmpeg and read it; ``describe`` makes this a ``SourceType.read``.

    Raises:
        VideoError: the source cannot be opened, or no frame can be decoded.
    """
    name, most = name_of(request.name), request.max_frames
    container, stream = _open_container(request, describe(request))
    frames = decode(container, stream, errors, skip=request.skip_damage)
    with closing(container), closing(frames):
        shown = f"{name} (codec {stream.codec_context.name})"
        first = first_frame(frames, errors, shown, hint(request.name))
        yield Opened(_stream_info(container, stream, first, name, most), notes_on(stream))
        yield first
        del first  # a frame is large
        yield from islice(frames, None if most is None else most - 1)


def _open_container(
    request: SourceRequest, source: FFmpegInput
) -> tuple[InputContainer, VideoStream]:
    """Open a source and choose its video stream. Raises VideoError with advice."""
    name = request.name
    shown = name_of(name) if name == STANDARD_INPUT else redact(name)
    try:
        container = av.open(
            source.file,
            "r",
            format=source.format,
            options=input_options(source.origin, allow_playlists=request.allow_playlists),
            metadata_errors="replace",  # a title in Latin-1 must not make a video unreadable
            timeout=request.network_timeout,
        )
    except (*READ_ERRORS, ValueError) as error:
        raise VideoError(_why_not_opened(name, shown, error)) from error
    try:
        stream = _video_stream(container, shown)
    except BaseException:
        container.close()
        raise
    return container, stream


def _stream_info(
    container: InputContainer,
    stream: VideoStream,
    first: Frame,
    name: str,
    max_frames: int | None,
) -> VideoInfo:
    rate = stream.average_rate or stream.guessed_rate
    seconds = (promised_end(container, stream) or first.pts) - first.pts
    count = max(stream.frames, 0) or round(max(seconds, 0) * float(rate or 0)) or None
    # FFmpeg marks transport streams; a source without an end (a camera, RTSP) has no start either.
    foreign_clock = not container.duration or bool(container.format.flags & _TS_DISCONT)
    return VideoInfo(
        width=first.width,
        height=first.height,
        average_fps=float(rate) if rate else None,
        frame_count=min(count, max_frames) if count and max_frames else count,
        name=name,
        time_base=stream.time_base or Fraction(1, 90_000),
        clock_start=first.pts if foreign_clock else 0.0,
    )


def _why_not_opened(source: str, shown: str, error: Exception) -> str:
    if is_url(source):
        return f"{shown} cannot be opened: {reason(error)}; check the address and the network"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {shown}; check the path (here is {Path.cwd()})"
    if isinstance(error, av.ArgumentError):
        return (
            f"{shown} is not a video by itself ({reason(error)}); a playlist (HLS, concat, SDP) "
            "opens other files and addresses: if you trust it, allow that with --allow-playlists "
            "(in Python allow_playlists=True)"
        )
    if isinstance(error, PermissionError):
        return f"{shown} may not be read: permission denied; check its owner and mode"
    if source == STANDARD_INPUT:
        return (
            f"standard input is not a video that can be read while it arrives ({reason(error)}); "
            f"{hint(source)}"
        )
    return (
        f"{shown} is not a video that FFmpeg can read ({reason(error)}); needed: a video file, a "
        "GIF, a folder of images, a URL or a device; copy the video again if it was cut short"
    )


def _video_stream(container: InputContainer, shown: str) -> VideoStream:
    streams = container.streams
    if container.format.name in _NOT_VIDEO:
        raise VideoError(f"{shown} is a text file; a video is needed: give a video file instead")
    # FFmpeg presents a song's cover art as a video stream.
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
