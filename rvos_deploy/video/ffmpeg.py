"""What reading and writing with FFmpeg share: its errors and its threads."""

from __future__ import annotations

import av

from rvos_deploy.environment import usable_cores
from rvos_deploy.redaction import redact_text

READ_ERRORS = (av.FFmpegError, OSError)
"""What FFmpeg and the objects it reads from raise for bad data or a lost connection."""

FALLBACK_FPS = 25
"""Frames a second where a container states none, as FFmpeg has it."""

SWSCALE_THREADS = 1
"""With several threads swscale (FFmpeg 8.1) now and then gives other pixels for small or 10-bit
pictures; masks must be the same at every run."""

# Every encoder thread holds a frame or two, so threads bound memory: eight 4K frames are 100 MB.
_MOST_THREADS = 8


def usable_threads() -> int:
    """Return the threads for a codec: one a core that this process may use, at most eight."""
    return min(_MOST_THREADS, usable_cores())


def reason(error: BaseException) -> str:
    """Say why FFmpeg failed, on one line, without the secrets of an address."""
    if isinstance(error, av.error.ExitError):  # PyAV's time-out, which FFmpeg calls an exit
        return "no data came in time"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact_text(" ".join(str(text).split()))
