"""Define the contract of a sink: one output of a run.

To add a kind of output, write one module with a ``Sink`` and a function ``make(request)``, and put
it into ``registry.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.video.frames import Frame, VideoInfo


class FrameResult(Protocol):
    """Define the result of one frame, for example ``runtime.frame_masks.FrameMasks``."""

    @property
    def frame(self) -> Frame:
        """Return the frame, with its image where a sink needs images."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Return masks bool [E,H,W]; this may wait for a device."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Return scores float32 [E], 0 to 1."""

    @property
    def expressions(self) -> tuple[int, ...]:
        """Return the indices [E] of the expressions in the list that ``open`` received."""


class Sink(ABC):
    """Write one output of a run. A subclass must define ``write``; other methods do nothing.

    A run calls ``open``. For each frame it calls ``write`` of every sink and, after all have
    succeeded, ``commit`` of every sink. At the end it calls ``finish``, then ``abort``. If a
    ``write`` or ``commit`` fails, every sink withdraws the frame (``rollback``), and the run ends.
    So a frame is in all outputs or in none, provided that only ``commit`` publishes it.

    ``write``, ``commit`` and ``rollback`` run in a thread of their own, one at a time. A failed
    write raises a ``RvosError``; ``rollback`` and ``abort`` raise nothing.
    """

    needs_images: bool = True
    """Whether ``write`` reads ``result.frame.image``; if no sink does, no image is kept."""

    irrevocable: bool = False
    """Whether a published frame cannot be withdrawn, because somebody has read it already. Such a
    sink commits after all others, so what it has published is in every other output too."""

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:  # noqa: B027
        """Begin the output.

        Args:
            info: information on the video; its frame count is an estimate.
            expressions: texts that are segmented.
        """

    @abstractmethod
    def write(self, result: FrameResult) -> None:
        """Write one frame. Frames arrive in order."""

    def commit(self) -> None:  # noqa: B027
        """Publish the frame that was written last; every sink has written it."""

    def rollback(self) -> None:  # noqa: B027
        """Withdraw the frame of the last ``write``, which may be committed; safe to call twice."""

    def finish(self) -> None:  # noqa: B027
        """Complete the output with the frames so far; also after a stop or an error."""

    def abort(self) -> None:  # noqa: B027
        """Remove unfinished files; a run calls it after ``finish`` too, where it does nothing."""

    def describe(self) -> dict[str, object]:
        """Return what ``result.json`` says of this output by its name, ready for JSON.

        ``files`` is the pattern of its files in the run's folder: ``{file}`` stands for a frame's
        "file", ``{expression}`` for the number of an expression.
        """
        return {}


class FrameNames:
    """Name the files of frames: as the source names the frame, else its number in 5 digits.

    The source's name loses its suffix. When two frames would share a name (``1.jpg`` and
    ``1.png``), the later one gets its number behind it. All sinks of a run share one object.
    """

    def __init__(self) -> None:
        self._last: tuple[int, str] | None = None
        self._used: set[str] = set()

    def of(self, frame: Frame) -> str:
        """Return the name of the frame's files, without suffix. Frames come in order."""
        if self._last is None or self._last[0] != frame.index:
            self._last = frame.index, self._named(frame)
        return self._last[1]

    def _named(self, frame: Frame) -> str:
        number = f"{frame.index:05d}"
        # A source from outside may give any text; only its last part is a file's name.
        name = PurePath((frame.name or "").replace("\0", "")).stem
        if not name or name == "..":
            return number
        # Some file systems ignore case.
        if name.casefold() in self._used:
            name = f"{name}_{number}"
        self._used.add(name.casefold())
        return name


@dataclass(frozen=True)
class SinkRequest:
    """Describe the run for which a sink is made.

    Args:
        out: folder of the run.
        summary: returns settings, versions and timings of the run as a dict for JSON; call it in
            ``finish``.
        names: names of the frames' files.
        target: what the user wrote after ``NAME=``, or None.
        sound: the file whose sound belongs to the video, or None if there is none that can be read
            a second time.
        allow_playlists: as in ``SourceOptions``, for ``sound``.
    """

    out: Path
    summary: Callable[[], dict[str, object]]
    names: FrameNames = field(default_factory=FrameNames)
    target: str | None = None
    sound: str | None = None
    allow_playlists: bool = False
