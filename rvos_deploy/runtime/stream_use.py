"""Who may use a stream, and in what order: one caller at a time, frames that advance."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rvos_deploy.errors import InputError
from rvos_deploy.video.frames import Frame


class ExclusiveUse:
    """One call at a time. A second caller is told so at once instead of waiting: two threads that
    push frames would mix up their order, even if they took turns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Hold for a block.

        Raises:
            InputError: somebody else does.
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
        """Hold from here on, unless somebody does; says whether it is held now."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()


@dataclass(frozen=True)
class FrameTime:
    """Number and time (seconds) of a frame; ``given`` unless they were made up from its place."""

    index: int
    pts: float
    given: bool = True

    @staticmethod
    def of(frame: object, count: int) -> FrameTime:
        """Of a Frame, or of a bare image that is the stream's frame number ``count``."""
        if isinstance(frame, Frame):
            return FrameTime(frame.index, frame.pts)
        return FrameTime(count, float(count), given=False)

    def require_after(self, last: FrameTime | None) -> None:
        """Raise InputError unless index and time are greater than those of the frame before."""
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
