"""Continue indices, times and the size of a video when a source is opened again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from rvos_deploy.video.sources.selection import Selector

# Seconds by which a clock that has gone on may differ from this machine's clock after a gap:
# frames wait in buffers on both sides of it.
_SAME_CLOCK = 2.0
# Seconds by which the first frame after a gap is later at least, where no frame came before it.
_FIRST_STEP = 0.04


@dataclass(frozen=True)
class Timestamp:
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
        self._resumed: float | None = None
        self._last = -math.inf
        # The least difference between this machine's clock and the source's, in the first
        # connection: of the frame that was delayed least. Later connections are placed by it, so
        # their delays do not add up.
        self._difference = math.inf
        self._gaps = False
        self._step = _FIRST_STEP

    def begin_at(self, index: int) -> None:
        """Expect frame ``index`` first: the file was positioned there."""
        self._index = self.frames = index
        self.selector.pass_over(index)

    def replay(self) -> None:
        """Expect the frames from the first one again."""
        self._index, self._replayed = 0, self.frames

    def resume(self) -> None:
        """Expect frames that follow a gap, from now on.

        The first frame is from about now; it arrives later, because FFmpeg reads ahead to learn
        what the stream is.
        """
        self._resumed = time.monotonic()

    @property
    def may_recover(self) -> bool:
        """Tell whether a packet that is incomplete may be whole in another connection."""
        return self.replayable and self.frames > self._replayed

    def place(self, pts: float) -> Timestamp | None:
        """Return index and time of the next decoded frame; None if it was read before.

        ``pts``: its time in this connection, which increases strictly.
        """
        index, self._index = self._index, self._index + 1
        if index < self.frames:
            return None
        if self._resumed is not None:
            expected, moved = self._resumed - self._difference, pts + self._offset
            if moved <= self._last or abs(moved - expected) > _SAME_CLOCK:
                self._offset = max(expected, self._last + self._step) - pts
            self._resumed, self._gaps = None, True
        placed = Timestamp(index, pts + self._offset)
        if not self._gaps:
            self._difference = min(self._difference, time.monotonic() - placed.pts)
        self._step = placed.pts - self._last if index else _FIRST_STEP
        self._last, self.frames = placed.pts, index + 1
        return placed
