"""Write the video with its masks drawn over it, and with its sound: ``overlay.mp4``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rvos_deploy.video.drawing.overlay import draw_overlay
from rvos_deploy.video.frames import Image, VideoInfo
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.sound import SoundTrack
from rvos_deploy.video.sinks.video_file import VideoWriter

OVERLAY = "overlay.mp4"
"""Name of a run's overlay."""


class OverlaySink(Sink):
    """Draw masks and a legend over each frame, and encode it; the file appears at the end."""

    def __init__(self, path: Path, sound: SoundTrack | None = None) -> None:
        self._path, self._sound = path, sound
        self._expressions: Sequence[str] = ()
        self._writer: VideoWriter | None = None

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        """Prepare the encoder; the first frame creates the file."""
        self._expressions = expressions
        self._writer = VideoWriter(self._path, info, sound=self._sound)

    def write(self, result: FrameResult) -> None:
        """Draw and encode one frame."""
        assert self._writer is not None, "open the sink first"
        drawn = drawn_frame(result, self._expressions)
        self._writer.write(drawn, result.frame.pts, result.frame.duration)

    def finish(self) -> None:
        """Complete the file and rename it to its final name."""
        if self._writer is not None:
            self._writer.close()

    def abort(self) -> None:
        """Remove the unfinished file."""
        if self._writer is not None:
            self._writer.abort()

    def describe(self) -> dict[str, object]:
        """Return the name of the file, and where its sound comes from."""
        return {
            "overlay": {"files": OVERLAY, "sound": self._sound.described if self._sound else None}
        }


def drawn_frame(result: FrameResult, expressions: Sequence[str]) -> Image:
    """Return a frame's image with its masks and a legend: uint8 [H, W, 3], RGB."""
    labels = [expressions[number] for number in result.expressions]
    return draw_overlay(
        result.frame.host_image(), result.masks, labels, result.scores, result.expressions
    )


def make(request: SinkRequest) -> OverlaySink:
    """Make the sink of a run."""
    sound = None
    if request.sound is not None:
        sound = SoundTrack.open(request.sound, allow_playlists=request.allow_playlists)
    return OverlaySink(request.out / OVERLAY, sound)
