"""Select frames of a video: from a start to an end, every so many, at most a number of them.

A place is a time ("12.5s", "1:30", "1:02:03.5") or a number of frames ("300f"). Numbers without a
unit are refused, because 10 could be either.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rvos_deploy.errors import InputError, one_line

Choice = Literal["take", "skip", "end"]

_NUMBER = re.compile(r"(\d{1,12}(?:\.\d*)?|\.\d+)(s|f)")
_CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")
# Times of a container are rounded to its ticks: "0.2s" must not miss the frame at 0.19999 s.
_ROUNDING = 1e-6


class Place(NamedTuple):
    """Hold a place in a video, or a distance: frames or seconds."""

    value: float
    unit: Literal["s", "f"]

    def reached(self, index: int, seconds: float) -> bool:
        """Tell whether a frame is at this place or behind it."""
        return index >= self.value if self.unit == "f" else seconds >= self.value - _ROUNDING

    def in_frames(self, fps: float) -> float:
        """Return the place as a number of frames at a rate."""
        return self.value if self.unit == "f" else self.value * fps


def parse_place(option: str, text: str) -> Place:
    """Parse "12.5s", "1:30" or "300f". Raises InputError, which names the option."""
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        return Place(3600 * int(hours or 0) + 60 * int(minutes) + float(seconds), "s")
    number = _NUMBER.fullmatch(text)
    if number is None:
        raise InputError(
            f"{option} '{one_line(text, 60)}' is neither a time nor a number of frames; write "
            "seconds as 10s, a time as 1:30, frames as 250f"
        )
    value, unit = float(number[1]), number[2]
    if unit == "s":
        return Place(value, "s")
    if value != int(value):
        raise InputError(f"{option} {text} is not a whole number of frames; write {int(value)}f")
    return Place(value, "f")


@dataclass(frozen=True)
class Selection:
    """Describe the frames to read.

    Times count from the start of the video, as a player shows them (``VideoInfo.clock_start``).

    Args:
        start: the first frame at or after this place; None: the first frame.
        end: the place before which the last frame lies; None: to the end.
        stride: distance between frames: "5f" reads every fifth frame from the first one, "0.5s" the
            first frame of every half second; None: all frames.
        max_frames: number of selected frames after which the video ends.

    Raises:
        InputError: the end is not behind the start, or the stride or number is below 1.
    """

    start: Place | None = None
    end: Place | None = None
    stride: Place | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.max_frames is not None and self.max_frames < 1:
            raise InputError(
                f"max_frames must be at least 1, found {self.max_frames}; leave it out for all"
            )
        if self.stride is not None and self.stride.value <= 0:
            raise InputError("--stride must be above 0; --stride 1f reads every frame")
        start, end = self.start or Place(0, "s"), self.end
        same_unit = end is not None and (start.unit == end.unit or self.start is None)
        if end is not None and same_unit and end.value <= start.value:
            raise InputError(
                f"--end {_text(end)} is not behind --start {_text(start)}; leave --end out to read "
                "to the end"
            )

    def selector(self) -> Selector:
        """Return a new selector, for one reading of a video."""
        return Selector(self)

    def count(self, total: int | None, fps: float | None) -> int | None:
        """Return how many frames of ``total`` are selected, an estimate; None: unknown."""
        if not fps or (total is None and self.end is None):
            return None
        last = math.inf if total is None else float(total)
        if self.end is not None:
            last = min(last, self.end.in_frames(fps))
        first = self.start.in_frames(fps) if self.start else 0.0
        step = max(1.0, self.stride.in_frames(fps)) if self.stride else 1.0
        count = max(0, math.ceil((last - first) / step - _ROUNDING))
        return min(count, self.max_frames) if self.max_frames else count

    def rate(self, fps: float | None) -> float | None:
        """Return the rate of the selected frames."""
        if not fps or self.stride is None:
            return fps
        return min(fps, fps / self.stride.in_frames(fps))

    def __str__(self) -> str:
        parts = (("--start", self.start), ("--end", self.end), ("--stride", self.stride))
        return " ".join(f"{name} {_text(place)}" for name, place in parts if place is not None)


class Selector:
    """Choose frames while a video is read. Frames are asked for in order, each once."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.zero: float | None = None
        """The time (seconds) on the source's clock that counts as 0; None: the first frame's."""
        self.done = False
        """Whether no later frame is selected, so that none needs to be waited for."""
        self._asked = 0
        self._last = 0.0
        self._taken = 0
        self._first_index = 0
        self._due: float | None = None

    def choose(self, index: int, pts: float) -> Choice:
        """Return whether to take a frame, skip it, or end before it."""
        if self.zero is None:
            self.zero = pts
        seconds = pts - self.zero
        self._asked, self._last = self._asked + 1, seconds
        wanted = self._selection
        if self.done or (wanted.end is not None and wanted.end.reached(index, seconds)):
            self.done = True
            return "end"
        if wanted.start is not None and not wanted.start.reached(index, seconds):
            return "skip"
        if not self._on_stride(index, seconds):
            return "skip"
        self._taken += 1
        last = wanted.end is not None and wanted.end.reached(index + 1, seconds)
        self.done = self._taken == wanted.max_frames or last
        return "take"

    def pass_over(self, frames: int) -> None:
        """Note that so many frames before the start were not read."""
        self._asked += frames

    @property
    def none_selected(self) -> str | None:
        """Return why a video that has frames gives none, in words; None if it has no frame."""
        if self._taken or not self._asked:
            return None
        return (
            f"its first {self._asked} frames, to {self._last:.2f} s, are all outside of "
            f"{self._selection}"
        )

    def _on_stride(self, index: int, seconds: float) -> bool:
        stride = self._selection.stride
        if stride is None:
            return True
        if not self._taken:
            self._first_index, self._due = index, seconds
        if stride.unit == "f":
            return (index - self._first_index) % int(stride.value) == 0
        assert self._due is not None
        if seconds < self._due - _ROUNDING:
            return False
        passed = math.floor((seconds - self._due + _ROUNDING) / stride.value) + 1
        self._due += passed * stride.value
        return True


def _text(place: Place) -> str:
    return f"{place.value:g}{place.unit}"
