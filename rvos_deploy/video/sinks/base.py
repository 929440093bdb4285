"""What a sink is: the contract of every output of a run.

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
    """What is written of one frame; ``runtime.frame_masks.FrameMasks`` is one."""

    @property
    def frame(self) -> Frame:
        """The frame, with its image where a sink needs images."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Masks bool [E,H,W]; asking may wait for a device."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Scores float32 [E], 0 to 1."""

    @property
    def expressions(self) -> tuple[int, ...]:
        """Numbers [E] of the expressions: their places in the list that ``open`` was given."""


class Sink(ABC):
    """One output of a run. Only ``write`` must be written; the rest does nothing by default.

    A run calls ``open``; then for each frame ``write`` of every sink and, when all of them have
    succeeded, ``commit`` of every sink; at last ``finish``, and ``abort``. When a ``write`` or
    ``commit`` fails, every sink withdraws the frame (``rollback``), and the run ends. So a frame is
    in all outputs or in none, as long as only ``commit`` shows what ``write`` has made.

    ``write``, ``commit`` and ``rollback`` run in a thread of their own, one at a time. What cannot
    be written raises a ``RvosError``; ``rollback`` and ``abort`` raise nothing.
    """

    needs_images: bool = True
    """Whether ``write`` reads ``result.frame.image``; if no sink does, no image is kept."""

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:  # noqa: B027
        """Begin.

        Args:
            info: of the video; its frame count is an estimate.
            expressions: what is segmented.
        """

    @abstractmethod
    def write(self, result: FrameResult) -> None:
        """Take one frame. Frames come in order."""

    def commit(self) -> None:  # noqa: B027
        """Show the frame that was written last; every sink has it."""

    def rollback(self) -> None:  # noqa: B027
        """Withdraw what ``write`` and ``commit`` have left of the frame; harmless twice."""

    def finish(self) -> None:  # noqa: B027
        """Complete the output with the frames so far; also after a stop or an error."""

    def abort(self) -> None:  # noqa: B027
        """Remove what is unfinished; harmless after ``finish``, and called after it too."""


@dataclass(frozen=True)
class SinkRequest:
    """What a sink is made of.

    Args:
        out: folder of the run.
        summary: gives what is known of the run beside its frames (settings, versions, timings); to
            be asked in ``finish``. A dict for JSON.
    """

    out: Path
    summary: Callable[[], dict[str, object]]
