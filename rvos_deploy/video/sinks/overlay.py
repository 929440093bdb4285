"""Write the video with its masks drawn over it: ``overlay.mp4``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rvos_deploy.video.drawing.overlay import draw_overlay
from rvos_deploy.video.frames import VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink
from rvos_deploy.video.sinks.mp4 import Mp4Writer

OVERLAY = "overlay.mp4"
"""Name of a run's overlay."""


class OverlaySink(Sink):
    """Draw masks and a legend over each frame, and encode it; the file appears at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._expressions: Sequence[str] = ()
        self._writer: Mp4Writer | None = None

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Prepare the encoder; the first frame creates the file."""
        self._expressions = expressions
        self._writer = Mp4Writer(self._path, info)

    def write(self, result: FrameResult) -> None:
        """Draw and encode one frame."""
        assert self._writer is not None, "open the sink first"
        frame = result.frame
        labels = [self._expressions[number] for number in result.expressions]
        drawn = draw_overlay(frame.host_image(), result.masks, labels, result.scores)
        self._writer.write(drawn, frame.pts, frame.duration)

    def finish(self) -> None:
        """Complete the file and rename it to its final name."""
        if self._writer is not None:
            self._writer.close()

    def abort(self) -> None:
        """Remove the unfinished file."""
        if self._writer is not None:
            self._writer.abort()
