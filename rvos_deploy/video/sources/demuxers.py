"""Restrict FFmpeg's demuxers and protocols, so that a file cannot open other files."""

from __future__ import annotations

from functools import cache
from typing import Literal

import av
from av.format import ContainerFormat

Origin = Literal["local", "pipe", "url"]
"""Origin of a source's bytes: a file or device, a pipe, or a network address."""

# Demuxers that open addresses named in their input, or files beside it (in libavformat 62: demuxers
# that call io_open, avformat_open_input, ffurl_open or a script interpreter).
_REFERRING = frozenset({
    "avisynth", "concat", "dash", "dvdvideo", "hls", "imf", "lavfi", "mlv", "rtp", "rtsp", "sap",
    "sdp", "vapoursynth", "vobsub", "webm_dash_manifest",
})  # fmt: skip

# The demuxers of live streams among them. The protocols below keep them away from local files.
_STREAMING = frozenset({"dash", "hls", "rtp", "rtsp", "sap", "sdp"})

_LOCAL: tuple[str, ...] = ("file", "pipe", "fd")
_NETWORK: tuple[str, ...] = (
    "crypto", "data", "ffrtmpcrypt", "ffrtmphttp", "ftp", "http", "httpproxy", "https", "mmsh",
    "mmst", "rist", "rtmp", "rtmpe", "rtmps", "rtmpt", "rtmpte", "rtmpts", "rtp", "rtsp", "rtsps",
    "sctp", "sftp", "srt", "srtp", "tcp", "tls", "udp", "udplite",
)  # fmt: skip


def input_options(origin: Origin, *, allow_playlists: bool) -> dict[str, str]:
    """Return options of avformat_open_input that limit which other inputs it may open.

    A file or pipe opens no other input, unless ``allow_playlists``. A URL may be a playlist of
    network addresses, and never opens a local file.
    """
    if origin == "url":
        protocols = _NETWORK
    elif allow_playlists:
        protocols = _LOCAL + _NETWORK
    else:
        # No protocol has the name "none"; an empty list would allow all protocols.
        protocols = _LOCAL if origin == "local" else ("none",)
    # A file name is never a pattern (frame%d.png) of other names.
    options = {"protocol_whitelist": ",".join(protocols), "pattern_type": "none"}
    if not allow_playlists:
        refused = _REFERRING - _STREAMING if origin == "url" else _REFERRING
        options["format_whitelist"] = ",".join(
            name for name in _demuxers() if refused.isdisjoint(name.split(","))
        )
    return options


@cache
def _demuxers() -> tuple[str, ...]:
    """Return the names of all demuxers of this FFmpeg."""
    return tuple(name for name in sorted(av.formats_available) if _is_demuxer(name))


def _is_demuxer(name: str) -> bool:
    try:
        ContainerFormat(name, "r")
    except ValueError:
        return False
    return True
