"""Addresses without their secrets: the one place that decides what of a URL may be shown.

Passwords and tokens of cameras and signed links must not reach results, logs or error lines. Those
are shared and kept; the address on the command line is not.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

# FFmpeg also takes these without "//".
_SCHEMES = (
    "amqp|ftp|ftps|gopher|gophers|hls|http|httpproxy|https|icecast|ipfs|ipns|mms|mmsh|mmst|rist|rtmp|"
    "rtmpe|rtmps|rtmpt|rtmpte|rtmpts|rtp|rtsp|rtsps|sctp|sftp|smb|srt|srtp|tcp|tls|udp|udplite|zmq"
)
_ADDRESS = rf"(?:[a-z][a-z0-9+.\-]*://|\b(?:{_SCHEMES}):(?!//)(?=\S))"
_URL = re.compile(rf"(?P<scheme>{_ADDRESS})(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(rf"{_ADDRESS}\S+", re.IGNORECASE)
_IN_LIST = re.compile(r"\|(?=[a-z][a-z0-9+.\-]*:)", re.IGNORECASE)
_AROUND = "'\"`()[]<>{},;:."


def redact(source: str) -> str:
    """A source as it may be shown: a URL without user, password, query and fragment.

    Anything else is returned as it is. A URL inside another protocol (``cache:http://...``) or in a
    list (``concat:http://...|http://...``) is found too.
    """
    return "|".join(map(_redact_one, _IN_LIST.split(source)))


def redact_text(text: str) -> str:
    """Prose with every URL in it redacted: error lines, warnings, tracebacks, logs."""
    # A word ends at a space, a password on the command line need not.
    for argument in sys.argv[1:]:
        if (short := redact(argument)) != argument:
            text = text.replace(argument, short)
    return _redact_words(text)


def redact_command(arguments: Sequence[str] | None = None) -> str:
    """A command (by default, this process's) that can be pasted into a shell, URLs redacted."""
    return shlex.join(_redact_option(a) for a in (sys.argv if arguments is None else arguments))


def _redact_words(text: str) -> str:
    def shown(match: re.Match[str]) -> str:
        word = match.group()
        address = word.rstrip(_AROUND)
        return redact(address) + word[len(address) :]

    return _WORD.sub(shown, text)


def _redact_option(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if equals and name.startswith("-"):
        return f"{name}={redact(value)}"
    return redact(argument)


def _redact_one(source: str) -> str:
    found = _URL.search(source)
    if found is None or " " in source[: found.start()].strip():
        return _redact_words(source) if found else source
    before, scheme, rest = source[: found.start()], found["scheme"], found["rest"]
    if (inner := _URL.search(rest)) is not None and inner.start() == 0:
        return before + scheme + _redact_one(rest)
    return before + scheme + _without_secrets(rest)


def _without_secrets(rest: str) -> str:
    # A password may hold "/", "?", "#" and "@" (FFmpeg would then misread it, and say so): after a
    # colon, everything up to the last "@" counts as one.
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    before = rest.rpartition("@")[0]
    if ":" in before:
        rest = rest[len(before) + 1 :]
    elif "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    return re.split(r"[?#]", rest, maxsplit=1)[0]
