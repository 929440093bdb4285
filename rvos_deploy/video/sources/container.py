"""Open a container with FFmpeg, choose its video stream, and read its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.redaction import redact
from rvos_deploy.video.ffmpeg import READ_ERRORS, reason
from rvos_deploy.video.frames import Frame, VideoInfo
from rvos_deploy.video.sources.address import STANDARD_INPUT, hint, is_url, kind_of, name_of
from rvos_deploy.video.sources.base import End, OpenedSource, SourceRequest, first_frame, joined
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.decoding import decode, is_untimed, promised_end
from rvos_deploy.video.sources.demuxers import Origin, input_options
from rvos_deploy.video.sources.notes import notes_on
from rvos_deploy.video.sources.seek import SeekPoint, find_seek_point, seek
from rvos_deploy.video.sources.timeline import Timeline

# av.format.Flags.ts_discont: formats whose clock may start anywhere and jump.
_TS_DISCONT = 512
# Demuxers of streams that do not end by themselves, if they state no duration. A transport stream
# over HTTP may end.
_ENDLESS = {"rtsp", "rtp", "sdp", "sap", "mpjpeg", "live_flv"}
# Time bases where times are those of arrival, and where a container states none.
_ARRIVAL_TIMES, _TICKS = Fraction(1, 1000), Fraction(1, 90_000)
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
        options: options of the demuxer and the protocol.
    """

    file: str | Readable
    origin: Origin
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def open_container(
    describe: Callable[[SourceRequest], FFmpegInput],
    request: SourceRequest,
    errors: DecodeErrors,
    timeline: Timeline | None = None,
) -> OpenedSource:
    """Open a source with FFmpeg; ``describe`` makes this a ``SourceType.open``.

    Args:
        describe: returns what FFmpeg opens.
        request: the source.
        errors: log of problems.
        timeline: continues an earlier connection; None: this is the only one.

    Raises:
        InputError: there is no such video stream, or no frame is selected.
        VideoError: the source cannot be opened, or no frame can be decoded.
    """
    name, selection = name_of(request.name), request.selection
    timeline = timeline or Timeline(selection.selector())
    with ExitStack() as undo:
        container, stream, begin = _open_near_start(request, describe(request), timeline)
        undo.callback(container.close)
        skip = request.skip_damage
        frames = decode(container, stream, errors, timeline, skip=skip, begin=begin)
        undo.callback(frames.close)
        shown = f"{name} (codec {stream.codec_context.name})"
        first = first_frame(frames, errors, timeline.selector, shown, hint(request.name))
        return OpenedSource(
            _stream_info(container, stream, first, request),
            joined(first, frames),
            (*notes_on(stream), *_note_on_streams(container, stream, request)),
            undo.pop_all().close,
            _end_of(container),
        )


def _open_near_start(
    request: SourceRequest, source: FFmpegInput, timeline: Timeline
) -> tuple[InputContainer, VideoStream, int | None]:
    """Open a source, and position a file near the first frame that is wanted.

    Returns:
        The container, its video stream, and the time in ticks of the key frame where the container
        is positioned; None: at its start.
    """
    point = _seek_point(request, source)
    container, stream = _open_container(request, source)
    if point is not None and not seek(container, stream, point):
        container.close()
        container, stream = _open_container(request, source)
        point = None
    if not _has_foreign_clock(container):
        timeline.selector.zero = 0.0
    if point is None:
        return container, stream, None
    if _has_foreign_clock(container) and stream.time_base is not None:
        timeline.selector.zero = float(point.first_ticks * stream.time_base)
    timeline.begin_at(point.index)
    return container, stream, point.ticks


def _seek_point(request: SourceRequest, source: FFmpegInput) -> SeekPoint | None:
    """Return the key frame from which a file is decoded, if frames before it are not wanted."""
    start = request.selection.start
    if start is None or source.origin != "local" or kind_of(request.name) != "file":
        return None
    container, stream = _open_container(request, source)
    with closing(container):
        zero = None if _has_foreign_clock(container) else 0.0
        return find_seek_point(container, stream, start, zero)


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
            options=input_options(source.origin, allow_playlists=request.allow_playlists)
            | dict(source.options),
            metadata_errors="replace",  # a title in Latin-1 must not make a video unreadable
            timeout=request.network_timeout,
        )
    except (*READ_ERRORS, ValueError) as error:
        raise VideoError(_why_not_opened(name, shown, error)) from error
    try:
        stream = _video_stream(container, shown, request.video_stream)
    except BaseException:
        container.close()
        raise
    return container, stream


def _stream_info(
    container: InputContainer, stream: VideoStream, first: Frame, request: SourceRequest
) -> VideoInfo:
    rate, selection = stream.average_rate or stream.guessed_rate, request.selection
    fps = float(rate) if rate else None
    begin = stream.start_time * stream.time_base if stream.start_time and stream.time_base else 0
    seconds = float((promised_end(container, stream) or begin) - begin)
    total = max(stream.frames, 0) or round(max(seconds, 0) * (fps or 0)) or None
    late = selection.start is not None or _has_foreign_clock(container)
    return VideoInfo(
        width=first.width,
        height=first.height,
        average_fps=None if is_untimed(container) else selection.rate(fps),
        frame_count=selection.count(total, fps),
        name=name_of(request.name),
        time_base=_ARRIVAL_TIMES if is_untimed(container) else stream.time_base or _TICKS,
        clock_start=first.pts if late else 0.0,
    )


def _has_foreign_clock(container: InputContainer) -> bool:
    """Tell whether the clock of a source started earlier than its first frame.

    FFmpeg marks transport streams; a source without an end (a camera, RTSP) has no start either.
    """
    return not container.duration or bool(container.format.flags & _TS_DISCONT)


def _end_of(container: InputContainer) -> End:
    if container.duration:
        return "known"
    return "unknown" if _ENDLESS.isdisjoint(container.format.name.split(",")) else "never"


def _note_on_streams(
    container: InputContainer, stream: VideoStream, request: SourceRequest
) -> tuple[str, ...]:
    """Say that there are further video streams, unless the user chose."""
    videos = _pictures(container)
    if len(videos) < 2 or request.video_stream is not None:
        return ()
    return (
        f"has {len(videos)} video streams ({_described(videos)}); number {videos.index(stream)} is "
        "read, choose another one by --video-stream N",
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


def _video_stream(container: InputContainer, shown: str, number: int | None) -> VideoStream:
    streams = container.streams
    if container.format.name in _NOT_VIDEO:
        raise VideoError(f"{shown} is a text file; a video is needed: give a video file instead")
    videos = _pictures(container)
    if not videos:
        kinds = ", ".join(sorted({s.type for s in streams})) or "nothing"
        raise VideoError(f"{shown} has no video stream (found: {kinds}); give a file with pictures")
    if number is not None and number >= len(videos):
        raise InputError(
            f"{shown} has no video stream {number}; there are: {_described(videos)} "
            "(--video-stream counts from 0)"
        )
    best = streams.best("video")
    stream = best if best in videos else videos[0]
    if number is not None:
        stream = videos[number]
    if getattr(stream, "codec_context", None) is None:
        raise VideoError(
            f"{shown} uses a codec that this FFmpeg cannot decode; convert it to H.264"
        )
    return stream


def _pictures(container: InputContainer) -> list[VideoStream]:
    """Return the video streams. FFmpeg presents a song's cover art as one, too."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def _described(videos: list[VideoStream]) -> str:
    return ", ".join(f"{i}: {video.width}x{video.height}" for i, video in enumerate(videos))
