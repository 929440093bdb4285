"""Collect the errors of reading a video, and report them in one line."""

from __future__ import annotations


class DecodeErrors:
    """Log the first remark, the number of later ones, and why reading stopped, in constant memory.

    A damaged video that still yields frames is not an exception, so this log accompanies the
    frames.
    """

    def __init__(self, whole: DecodeErrors | None = None) -> None:
        """Start without errors; ``whole`` gets the remarks too: of all connections to a source."""
        self._whole = whole
        self._stop: str | None = None
        self._first: str | None = None
        self._remarks = 0
        self.lost = False
        """Whether reading stopped because the source gave no more data, not because of bad data."""
        self.reconnects = 0
        """How often a lost connection was made again."""

    def remark(self, text: str) -> None:
        """Note a problem that did not stop the reading."""
        self._first = self._first or text
        self._remarks += 1
        if self._whole is not None:
            self._whole.remark(text)

    @property
    def stopped(self) -> str | None:
        """Return why no more frames follow, or None."""
        return self._stop

    def stop(self, text: str, *, lost: bool = False) -> None:
        """Note why no more frames follow."""
        self.lost = lost if self._stop is None else self.lost
        self._stop = self._stop or text

    @property
    def line(self) -> str | None:
        """Return one line for people, or None without errors."""
        parts = [text for text in (self._stop, self._first) if text]
        more = self._remarks - 1
        if parts and more > 0:
            parts.append(f"{more} more such problem{'s' if more > 1 else ''}")
        return "; ".join(parts) or None
