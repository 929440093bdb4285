"""Classify the name of a source: a path, a pipe, a device or a network address."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rvos_deploy.redaction import redact

STANDARD_INPUT = "-"

Kind = Literal["file", "folder", "glob", "pipe", "device", "url"]

# Names that FFmpeg reads as a protocol when a colon follows, with or without "//": the names in
# libavformat/protocols.c, and names that its demuxers (rtsp, sap) look for. Any other name before a
# colon is part of a file's name.
_NAMES = (
    "amqp android_content async bluray cache concat concatf crypto data dtls ffrtmpcrypt "
    "ffrtmphttp ftp ftps gopher gophers hls http httpproxy https icecast ipfs ipns ipfs_gateway "
    "librtmp md5 mms mmsh mmst prompeg rist rtmp rtmpe rtmps rtmpt rtmpte rtmpts rtp rtsp rtsps "
    "rtspu sap satip sctp sftp smb srt srtp subfile tcp tee tls udp udplite unix zmq"
)
_PROTOCOLS = frozenset(_NAMES.split())
_PIPES = frozenset(("pipe", "fd"))
# Characters of a pattern of names. A name that exists is a path, whatever it contains.
_PATTERN = frozenset("*?[")
# FFmpeg finds the protocol in the same way (url_find_protocol): "crypto+http" means "crypto".
_SCHEME = re.compile(r"([A-Za-z0-9.\-]+)(?:\+[A-Za-z0-9+.\-]*)?:|(subfile),.*:", re.DOTALL)


def name_of(source: str) -> str:
    """Return a short name for people: no folders, and no secrets of a URL."""
    if source == STANDARD_INPUT:
        return "standard input"
    if (shown := redact(source)) != source or is_url(source):
        return shown
    try:
        return Path(source).resolve().name or source
    except (OSError, ValueError, RuntimeError):  # too long, contains a NUL, or a loop of links
        return source


def hint(source: str) -> str:
    """Return advice for a source from which no frame can be decoded."""
    if source == STANDARD_INPUT:
        return "pipe MPEG-TS, Matroska or fragmented MP4, or give a file name"
    return "record or convert it again"


def kind_of(source: str, format: str | None = None) -> Kind:
    """Return the kind of ``source``. A name that exists is always a path.

    A name that does not exist is a "file" too, unless FFmpeg would read the text before its colon
    as a protocol (``http:host/a.mp4``). With a ``format`` (of a demuxer) it is a "device". A small
    number is the "device" of a camera, and a pattern (``*?[``) is a "glob".
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


def camera_number(source: str) -> int | None:
    """Return the number of a camera: "0" is the first one. None: the name is no such number."""
    return int(source) if re.fullmatch(r"[0-9]{1,2}", source) else None


def is_kind(kind: Kind) -> Callable[[str, str | None], bool]:
    """Return the ``matches`` of a ``SourceType`` for names of this kind."""
    return lambda name, format: kind_of(name, format) == kind


def has_path(source: str) -> bool:
    """Tell whether a path of this name exists.

    Return False for a name that no file can have, where pathlib raises (a long URL, for example).
    """
    return os.path.exists(source)  # noqa: PTH110


def is_url(source: str) -> bool:
    """Tell whether FFmpeg would read ``source`` over a protocol, whatever its spelling."""
    return kind_of(source) == "url"


def ffmpeg_path(source: str) -> str:
    """Return a path, or a name of FFmpeg's pipe protocols, in a form that FFmpeg cannot misread."""
    if has_path(source):
        return f"file:{Path(source).resolve()}"
    protocol = _protocol(source)
    # Without "file:", FFmpeg reads the text before a colon in a file's name as a protocol.
    return f"file:{source}" if protocol and protocol not in {"file", *_PIPES} else source


def ffmpeg_url(source: str) -> str:
    """Return an address with a lower-case scheme: FFmpeg needs one, RFC 3986 allows any case."""
    protocol = _protocol(source)
    return protocol + source[len(protocol) :]


def _kind_by_name(source: str) -> Kind:
    protocol = _protocol(source)
    if protocol in _PIPES:
        return "pipe"
    if protocol in _PROTOCOLS or ("://" in source and protocol != "file"):
        return "url"
    if camera_number(source) is not None:
        return "device"
    if protocol != "file" and _PATTERN.intersection(source):
        return "glob"
    return "file"


def _protocol(source: str) -> str:
    """Return the protocol that FFmpeg reads in ``source``, in lower case; "" without one."""
    found = _SCHEME.match(source)
    return (found[1] or found[2]).lower() if found else ""
