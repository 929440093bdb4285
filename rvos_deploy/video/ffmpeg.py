"""Share FFmpeg's errors and threads between readers and writers."""

from __future__ import annotations

import av

from rvos_deploy.environment import usable_cores
from rvos_deploy.redaction import redact_text

READ_ERRORS = (av.FFmpegError, OSError)
"""Errors of FFmpeg, and of the objects that it reads, for bad data or a lost connection."""

FALLBACK_FPS = 25
"""Frames per second where a container states none, as FFmpeg assumes."""

SWSCALE_THREADS = 1
"""With several threads, swscale (FFmpeg 8.1) sometimes changes pixels of small or 10-bit pictures,
but masks must be equal in every run."""

# Every encoder thread holds a frame or two, so threads bound memory: eight 4K frames are 100 MB.
_MOST_THREADS = 8


def usable_threads() -> int:
    """Return the number of threads for a codec: one per usable core, at most eight."""
    return min(_MOST_THREADS, usable_cores())


def reason(error: BaseException) -> str:
    """Return why FFmpeg failed, in one line, without the secrets of an address."""
    if isinstance(error, av.error.ExitError):  # PyAV's timeout, which FFmpeg calls an exit
        return "no data came in time"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact_text(" ".join(str(text).split()))
