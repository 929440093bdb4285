"""Define the contract of a sink: one output of a run.

To add a kind of output, write one module with a ``Sink`` and put it into ``registry.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        """Withdraw the frame of the last ``write`` and ``commit``; safe to call twice."""

    def finish(self) -> None:  # noqa: B027
        """Complete the output with the frames so far; also after a stop or an error."""

    def abort(self) -> None:  # noqa: B027
        """Remove unfinished files; a run calls it after ``finish`` too, where it does nothing."""


@dataclass(frozen=True)
class SinkRequest:
    """Describe the run for which a sink is made.

    Args:
        out: folder of the run.
        summary: returns settings, versions and timings of the run as a dict for JSON; call it in
            ``finish``.
    """

    out: Path
    summary: Callable[[], dict[str, object]]
