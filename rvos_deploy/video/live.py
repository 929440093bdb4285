"""Decide which frames of a live source are read: every frame, or the latest ones."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rvos_deploy import stopping
from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sources.options import Policy

# Bytes of frames that may wait, whatever the latency: ten frames of 4K video.
_MOST_BYTES = 256 << 20
# Seconds for each step of a wait. A lost wake-up would cost one step.
_STEP = 1.0


@dataclass(frozen=True)
class LiveReport:
    """Report how a live source was read.

    Args:
        policy: "every" or "latest".
        max_latency: seconds for which "latest" kept a frame; None for "every".
        dropped: frames that were dropped because they were stale.
        behind_seconds: seconds by which reading was behind the source at the last frame.
        reconnects: how often a lost connection was made again.
    """

    policy: Policy
    max_latency: float | None
    dropped: int
    behind_seconds: float
    reconnects: int


class Lag:
    """Measure by how much reading falls behind the clock of a source.

    The frame that came earliest, measured on its own clock, counts as on time.
    """

    def __init__(self) -> None:
        self._earliest = math.inf
        self.behind = 0.0
        """Seconds by which the last frame was late."""

    def note(self, pts: float) -> None:
        """Note that the frame of this time (seconds) is handed out now."""
        late = time.monotonic() - pts
        self._earliest = min(self._earliest, late)
        self.behind = late - self._earliest


class _Waiting(NamedTuple):
    frame: Frame
    arrival: float


class LatestFrames(Closeable):
    """Read a source all the time, and hand out only frames that are not stale.

    A frame is stale if it has waited longer than the latency, or if a frame has come that is later
    by more than the latency. The newest frame is never stale. So without a latency, the reader gets
    the newest frame, each at most once. Stale frames are dropped, oldest first, also when the
    waiting ones need too much memory.
    """

    def __init__(self, pull: Callable[[], Frame], max_latency: float) -> None:
        """Start reading.

        Args:
            pull: returns the next frame, or raises StopIteration or the source's error. It runs in
                a thread of its own.
            max_latency: seconds for which a frame may wait.
        """
        self.max_latency = max_latency
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._end: BaseException | None = None
        self.dropped = 0
        """Number of dropped frames so far."""
        self._thread = threading.Thread(
            target=self._read, args=(pull,), name="latest frames", daemon=True
        )
        self._thread.start()

    def next(self) -> Frame:
        """Wait for a frame that is not stale, and return it.

        Raises StopIteration, or the source's error, when the frames before it are read.
        """
        with stopping.interruptible(), self._changed:
            while not self._waiting and self._end is None:
                self._changed.wait(_STEP)
            if not self._waiting:
                assert self._end is not None
                raise self._end
            self._drop_stale()
            frame = self._waiting.popleft().frame
            self._bytes -= _bytes_of(frame)
            return frame.with_dropped(self.dropped)

    def close(self) -> None:
        """Drop the waiting frames, and end. The thread ends with its ``pull``."""
        with self._changed:
            self._end = self._end or StopIteration()
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()

    def _read(self, pull: Callable[[], Frame]) -> None:
        end: BaseException = StopIteration()
        try:
            while self._put(pull()):
                pass
        except BaseException as error:
            end = error
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """Add a frame; return whether more are wanted."""
        with self._changed:
            if self._end is not None:
                return False
            self._waiting.append(_Waiting(frame, time.monotonic()))
            self._bytes += _bytes_of(frame)
            self._drop_stale()
            self._changed.notify_all()
            return True

    def _drop_stale(self) -> None:
        now, newest = time.monotonic(), self._waiting[-1].frame
        while len(self._waiting) > 1:
            frame, arrival = self._waiting[0]
            age = max(now - arrival, newest.pts - frame.pts)
            if age <= self.max_latency and self._bytes <= _MOST_BYTES:
                return
            self._waiting.popleft()
            self._bytes -= _bytes_of(frame)
            self.dropped += 1


def _bytes_of(frame: Frame) -> int:
    # An image on a device counts as it would on the host.
    if isinstance(frame.image, np.ndarray):
        return int(frame.image.nbytes)
    try:
        return 3 * frame.height * frame.width
    except InputError:  # the image does not tell its shape
        return 0
