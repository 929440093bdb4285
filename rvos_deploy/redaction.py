"""Remove secrets from addresses; this module alone decides which parts of a URL are shown.

Passwords and tokens of cameras and signed links must not reach results, logs or error lines, which
people share and keep.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

# FFmpeg also accepts these without "//".
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
    """Return a source for display: a URL loses its user, password, query and fragment.

    Other text is returned unchanged. A URL inside another protocol (``cache:http://...``) or in a
    list (``concat:http://...|http://...``) is redacted too.
    """
    return "|".join(map(_redact_one, _IN_LIST.split(source)))


def redact_text(text: str) -> str:
    """Redact every URL in prose: error lines, warnings, tracebacks, logs."""
    # A word ends at a space, but a password on the command line may contain spaces.
    for argument in sys.argv[1:]:
        if (short := redact(argument)) != argument:
            text = text.replace(argument, short)
    return _redact_words(text)


def redact_command(arguments: Sequence[str] | None = None) -> str:
    """Return a command (default: this process's) for pasting into a shell, with redacted URLs."""
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
    # A password may contain "/", "?", "#" and "@" (FFmpeg would misread it, and print it): after a
    # colon, everything up to the last "@" counts as the password.
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    before = rest.rpartition("@")[0]
    if ":" in before:
        rest = rest[len(before) + 1 :]
    elif "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    return re.split(r"[?#]", rest, maxsplit=1)[0]
