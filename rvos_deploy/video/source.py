"""Finding out what a source is, and opening it with FFmpeg."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from rvos_deploy.errors import VideoError
from rvos_deploy.redaction import redact
from rvos_deploy.video.decoding import READ_ERRORS, reason
from rvos_deploy.video.demuxers import Origin, input_options

STANDARD_INPUT = "-"

NETWORK_TIMEOUT = 30.0
"""Seconds to wait for a server: a camera that is switched off would hang the run for ever."""
FRAME_TIMEOUT = 120.0
"""Seconds without a frame after which a file counts as hung, whatever FFmpeg does."""

Kind = Literal["file", "folder", "pipe", "device", "url"]

# Names that FFmpeg takes for a protocol when a colon follows, with or without "//": those of
# libavformat/protocols.c, and those that its demuxers (rtsp, sap) look for themselves. Any other
# name before a colon is part of a file's name.
_NAMES = (
    "amqp android_content async bluray cache concat concatf crypto data dtls ffrtmpcrypt "
    "ffrtmphttp ftp ftps gopher gophers hls http httpproxy https icecast ipfs ipns ipfs_gateway "
    "librtmp md5 mms mmsh mmst prompeg rist rtmp rtmpe rtmps rtmpt rtmpte rtmpts rtp rtsp rtsps "
    "rtspu sap satip sctp sftp smb srt srtp subfile tcp tee tls udp udplite unix zmq"
)
_PROTOCOLS = frozenset(_NAMES.split())
_PIPES = frozenset(("pipe", "fd"))
# How FFmpeg itself finds the protocol (url_find_protocol); "crypto+http" is of the first of both.
_SCHEME = re.compile(r"([A-Za-z0-9.\-]+)(?:\+[A-Za-z0-9+.\-]*)?:|(subfile),.*:", re.DOTALL)
# FFmpeg "plays" any .txt as terminal output, drawn in a video of its own making.
_NOT_VIDEO = {"tty"}


class _Pipe:
    """Standard input, read as it arrives: a plain read() would wait to fill a buffer.

    Unbuffered where it can be: the thread that waits here may be left behind, and a buffer's lock
    that such a thread holds makes the interpreter abort at its end.
    """

    def __init__(self, stream: Any) -> None:
        self._read = stream.raw.read if hasattr(stream, "raw") else stream.read1

    def read(self, size: int) -> bytes:
        return cast(bytes, self._read(size) or b"")


def name_of(source: str) -> str:
    """A short name for people: no folders, and no secrets of a URL."""
    if source == STANDARD_INPUT:
        return "standard input"
    if (shown := redact(source)) != source or is_url(source):
        return shown
    try:
        return Path(source).resolve().name or source
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, a loop of links
        return source


def mending(source: str) -> str:
    """What to do about a source of which no frame can be decoded."""
    if source == STANDARD_INPUT:
        return "pipe MPEG-TS, Matroska or fragmented MP4, or give a file name"
    return "record or convert it again"


def kind_of(source: str, format: str | None = None) -> Kind:
    """What ``source`` is. A name that exists is a path, whatever it looks like.

    A name that does not exist is a "file" too, unless FFmpeg would take what stands before its
    colon for a protocol (``http:host/a.mp4``). With a ``format`` (of a demuxer) it is a "device".
    """
    if source == STANDARD_INPUT:
        return "pipe"
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError):
        return _kind_by_name(source) if format is None else "device"
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "file"
    return "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "pipe"


def has_path(source: str) -> bool:
    """Whether something of this name exists. A name that no file can have is that of none: a long
    URL, for one, over which pathlib raises.
    """
    return os.path.exists(source)  # noqa: PTH110


def has_end(source: str | os.PathLike[str]) -> bool:
    """Whether the source is a file or folder; a pipe, URL or device may go on for ever."""
    name = os.fspath(source)
    return has_path(name) and kind_of(name) in ("file", "folder")


def is_url(source: str) -> bool:
    """Whether FFmpeg would read ``source`` over a protocol, in whatever way that is spelled."""
    return kind_of(source) == "url"


class Timeouts(NamedTuple):
    """Seconds to wait; None: for ever."""

    network: float | None  # for a server that is silent
    frame: float | None  # for a frame, whatever FFmpeg does meanwhile


def timeouts(kind: Kind, asked: float | Literal["auto"] | None) -> Timeouts:
    """What to wait for a source of this kind."""
    if kind == "url":
        network = NETWORK_TIMEOUT if asked == "auto" else asked
        # More, since FFmpeg's own time-out ends tidily. It does not see a name server that is
        # silent, nor a server that sends a byte now and then.
        return Timeouts(network, None if network is None else 4 * network)
    if asked == "auto":
        return Timeouts(None, None if kind in ("pipe", "device") else FRAME_TIMEOUT)
    return Timeouts(None, asked)


def _kind_by_name(source: str) -> Kind:
    protocol = _protocol(source)
    if protocol in _PIPES:
        return "pipe"
    if protocol in _PROTOCOLS or ("://" in source and protocol != "file"):
        return "url"
    return "file"


def _protocol(source: str) -> str:
    """What FFmpeg takes for the protocol of ``source``, in lower case; "" without one."""
    found = _SCHEME.match(source)
    return (found[1] or found[2]).lower() if found else ""


def open_container(
    source: str, format: str | None, timeout: float | None, *, allow_playlists: bool = False
) -> tuple[InputContainer, VideoStream]:
    """Open ``source`` and choose its video stream.

    ``timeout``: seconds that a server may be silent, now and later; None for other sources.
    ``allow_playlists``: whether a file or pipe may name further addresses.

    Raises VideoError with what to do instead.
    """
    shown = name_of(source) if source == STANDARD_INPUT else redact(source)
    _check_file(source)
    try:
        container = av.open(
            _ffmpeg_name(source, format),
            "r",
            format=format or ("v4l2" if source.startswith("/dev/video") else None),
            options=input_options(_origin(source), allow_playlists=allow_playlists),
            metadata_errors="replace",  # a title in Latin-1 is no reason to refuse a video
            timeout=timeout,
        )
    except (*READ_ERRORS, ValueError) as error:
        raise VideoError(_why_not_opened(source, shown, error)) from error
    try:
        stream = _video_stream(container, shown)
    except BaseException:
        container.close()
        raise
    return container, stream


def _origin(source: str) -> Origin:
    if source == STANDARD_INPUT:
        return "pipe"
    return "url" if is_url(source) else "local"


def _check_file(source: str) -> None:
    path = Path(source)
    if source == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.isatty():
            raise VideoError(
                "nothing is piped into standard input; use `... < VIDEO`, or a file name"
            )
    elif kind_of(source) == "file" and has_path(source) and path.stat().st_size == 0:
        raise VideoError(f"{source} is empty (0 bytes); a video is needed: copy or record it again")


def _ffmpeg_name(source: str, format: str | None) -> Any:
    if source == STANDARD_INPUT:
        return _Pipe(sys.stdin.buffer)
    kind, protocol = kind_of(source, format), _protocol(source)
    if kind == "url":
        # Schemes have no case (RFC 3986); FFmpeg knows them in lower case.
        return protocol + source[len(protocol) :]
    if kind == "device":
        return source
    if has_path(source):
        return f"file:{Path(source).resolve()}"
    # Without "file:", FFmpeg takes what stands before a colon in a file's name for a protocol.
    return f"file:{source}" if protocol and protocol not in {"file", *_PIPES} else source


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
