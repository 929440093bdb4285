"""Which of FFmpeg's demuxers and protocols a source may use: a file must not open other files."""

from __future__ import annotations

from functools import cache
from typing import Literal

import av
from av.format import ContainerFormat

Origin = Literal["local", "pipe", "url"]
"""Where the bytes of a source come from: a file or device, a pipe, a network address."""

# Demuxers that open addresses which stand in their input, or files beside it (libavformat 62: those
# that call io_open, avformat_open_input, ffurl_open or a script interpreter).
_REFERRING = frozenset({
    "avisynth", "concat", "dash", "dvdvideo", "hls", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap",
    "sdp", "vapoursynth", "vobsub", "webm_dash_manifest",
})  # fmt: skip

# Of those, what a live stream is made of. The protocols below keep them off local files.
_STREAMING = frozenset({"dash", "hls", "rtp", "rtsp", "sap", "sdp"})

_LOCAL: tuple[str, ...] = ("file", "pipe", "fd")
_NETWORK: tuple[str, ...] = (
    "crypto", "data", "ffrtmpcrypt", "ffrtmphttp", "ftp", "http", "httpproxy", "https", "mmsh",
    "mmst", "rist", "rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtp", "rtsp", "rtsps",
    "sctp", "sftp", "srt", "srtp", "tcp", "tls", "udp", "udplite",
)  # fmt: skip


def input_options(origin: Origin, *, allow_playlists: bool) -> dict[str, str]:
    """Options of avformat_open_input that bound what it may open besides the source itself.

    A file or pipe opens nothing else, unless ``allow_playlists``. A URL may be a playlist of
    network addresses, and never reaches a local file.
    """
    if origin == "url":
        protocols = _NETWORK
    elif allow_playlists:
        protocols = _LOCAL + _NETWORK
    else:
        # No protocol is called none; with an empty list FFmpeg would allow all of them.
        protocols = _LOCAL if origin == "local" else ("none",)
    # A file is never a pattern (frame%d.png) that stands for others.
    options = {"protocol_whitelist": ",".join(protocols), "pattern_type": "none"}
    if not allow_playlists:
        refused = _REFERRING - _STREAMING if origin == "url" else _REFERRING
        options["format_whitelist"] = ",".join(
            name for name in _demuxers() if refused.isdisjoint(name.split(","))
        )
    return options


@cache
def _demuxers() -> tuple[str, ...]:
    """Names of all demuxers of this FFmpeg."""
    return tuple(name for name in sorted(av.formats_available) if _is_demuxer(name))


def _is_demuxer(name: str) -> bool:
    try:
        ContainerFormat(name, "r")
    except ValueError:
        return False
    return True
