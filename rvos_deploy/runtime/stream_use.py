"""Enforce one caller of a stream at a time, and frames in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rvos_deploy.errors import InputError
from rvos_deploy.video.frames import Frame


class ExclusiveUse:
    """Allow one call at a time.

    A second caller gets an error instead of waiting: two threads that push frames in turn would
    still mix up their order.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Hold the stream for a block.

        Raises:
            InputError: another caller holds it.
        """
        if not self.try_acquire():
            raise InputError(
                "this stream is in use by another thread (or by a callback of its own); a stream "
                "belongs to one thread: open one in each, with segmenter.stream(...)"
            )
        try:
            yield
        finally:
            self.release()

    def try_acquire(self) -> bool:
        """Hold the stream unless another caller does; return whether this caller holds it."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Let other callers use the stream."""
        self._lock.release()


@dataclass(frozen=True)
class FrameTime:
    """Hold the number and time (seconds) of a frame; ``given`` is False for a bare image."""

    index: int
    pts: float
    given: bool = True

    @staticmethod
    def of(frame: object, count: int) -> FrameTime:
        """Read a Frame, or number a bare image that is the stream's frame ``count``."""
        if isinstance(frame, Frame):
            return FrameTime(frame.index, frame.pts)
        return FrameTime(count, float(count), given=False)

    def require_after(self, last: FrameTime | None) -> None:
        """Raise InputError unless index and time exceed those of the previous frame."""
        if last is None or (self.index > last.index and self.pts > last.pts):
            return
        if self.given == last.given:
            fix = "push frames in the order of their times, and open a new stream for another video"
        else:
            fix = (
                "a bare array has its place in the stream for index and time, which do not go "
                "together with those of Frames: push one kind only"
            )
        raise InputError(
            f"frame {self.index} at {self.pts:g} s does not come after frame {last.index} at "
            f"{last.pts:g} s, which was pushed before; {fix}"
        )
