"""What went wrong while a video was read, told in one line."""

from __future__ import annotations


class DecodeErrors:
    """A log of constant size: the first remark, how many followed, and why reading stopped early.

    A damaged video is not an error as long as frames come out of it, so this is carried beside the
    frames.
    """

    def __init__(self) -> None:
        self._stop: str | None = None
        self._first: str | None = None
        self._remarks = 0

    def remark(self, text: str) -> None:
        """Note something that reading got over."""
        self._first = self._first or text
        self._remarks += 1

    def stop(self, text: str) -> None:
        """Note why no more frames come."""
        self._stop = self._stop or text

    @property
    def line(self) -> str | None:
        """One line for people, or None when nothing was wrong."""
        parts = [text for text in (self._stop, self._first) if text]
        more = self._remarks - 1
        if parts and more > 0:
            parts.append(f"{more} more such problem{'s' if more > 1 else ''}")
        return "; ".join(parts) or None
