"""Continue indices, times and the size of a video when a source is opened again."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from rvos_deploy.video.sources.selection import Selector

# Seconds by which a clock that has gone on may differ from this machine's clock after a gap:
# frames wait in buffers on both sides of it.
_SAME_CLOCK = 2.0


class FrameTime(NamedTuple):
    """Hold the index of a frame, and its time in seconds."""

    index: int
    pts: float


class Timeline:
    """Number and time the frames of one video, over all connections to its source.

    A file that is opened again (``replay``) begins anew: frames that were read before are skipped.
    A live source (``resume``) goes on: where its clock has gone on too, times stay as they are;
    where its clock began anew, the gap is measured by this machine's clock.

    Attributes:
        selector: chooses the frames.
        size: displayed (width, height) of the first frame, to which later ones are scaled.
        frames: number of frames so far.
        replayable: whether the source can be read again from its first frame.
    """

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.size: tuple[int, int] | None = None
        self.frames = 0
        self.replayable = False
        self._index = 0
        self._replayed = -1
        self._offset = 0.0
        self._resumed = False
        self._last = -math.inf
        # The least difference between this machine's clock and the source's, of this connection: of
        # the frame that was delayed least. A decoder gives the last frames before a gap late.
        self._difference = math.inf

    def replay(self) -> None:
        """Expect the frames from the first one again."""
        self._index, self._replayed = 0, self.frames

    def resume(self) -> None:
        """Expect frames that follow a gap."""
        self._resumed = True

    @property
    def may_recover(self) -> bool:
        """Tell whether a packet that is incomplete may be whole in another connection."""
        return self.replayable and self.frames > self._replayed

    def place(self, pts: float) -> FrameTime | None:
        """Return index and time of the next decoded frame; None if it was read before.

        ``pts``: its time in this connection, which increases strictly.
        """
        index, self._index = self._index, self._index + 1
        if index < self.frames:
            return None
        now = time.monotonic()
        if self._resumed:
            expected, moved = now - self._difference, pts + self._offset
            if moved <= self._last or abs(moved - expected) > _SAME_CLOCK:
                self._offset = expected - pts
            self._resumed, self._difference = False, math.inf
        placed = FrameTime(index, pts + self._offset)
        self._difference = min(self._difference, now - placed.pts)
        self._last, self.frames = placed.pts, index + 1
        return placed
