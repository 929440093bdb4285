"""Collect the errors of reading a video, and report them in one line."""

from __future__ import annotations


class DecodeErrors:
    """Log the first remark, the number of later ones, and why reading stopped, in constant memory.

    A damaged video that still yields frames is not an exception, so this log accompanies the
    frames.
    """

    def __init__(self) -> None:
        self._stop: str | None = None
        self._first: str | None = None
        self._remarks = 0

    def remark(self, text: str) -> None:
        """Note a problem that did not stop the reading."""
        self._first = self._first or text
        self._remarks += 1

    def stop(self, text: str) -> None:
        """Note why no more frames follow."""
        self._stop = self._stop or text

    @property
    def line(self) -> str | None:
        """Return one line for people, or None without errors."""
        parts = [text for text in (self._stop, self._first) if text]
        more = self._remarks - 1
        if parts and more > 0:
            parts.append(f"{more} more such problem{'s' if more > 1 else ''}")
        return "; ".join(parts) or None
