"""Segment the frames of a visitor's camera: the newest one wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.ui.levels import Levels, levels_render, masks_at
from rvos_deploy.ui.video_session import Limits
from rvos_deploy.video.drawing.overlay import draw_overlay
from rvos_deploy.video.frames import Frame, Image


@dataclass(frozen=True)
class CameraFrame:
    """Hold a segmented frame: its picture with masks, and the scores of its texts."""

    picture: Image
    texts: tuple[str, ...]
    scores: tuple[float, ...]


class CameraSession(Closeable):
    """Hold the stream of one camera. Threads may share it."""

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        """Open a stream without an expression."""
        self._limits = limits
        self._levels: tuple[Levels, ...] = ()
        render = levels_render(0.5, self._keep)
        settings = StreamSettings(mode="online")
        self._stream = segmenter.stream((), settings, render=render)
        self._numbers: dict[str, int] = {}
        self._busy = threading.Lock()
        self._began = self._last = time.monotonic()
        self.frames = 0
        """Number of frames that were segmented."""

    def segment(
        self, image: NDArray[np.uint8], texts: Sequence[str], threshold: float
    ) -> CameraFrame | None:
        """Segment a frame for exactly these expressions; None: another frame is in hand.

        Raises RvosError: the frame is too large, the stream is closed, or the network failed.
        """
        self._last = time.monotonic()
        if not self._busy.acquire(blocking=False):
            return None
        try:
            self._follow(texts)
            return self._segment(image, threshold)
        finally:
            self._busy.release()

    def _follow(self, texts: Sequence[str]) -> None:
        for text in [text for text in self._numbers if text not in texts]:
            self._stream.remove_expression(self._numbers.pop(text))
        for text in texts:
            if text not in self._numbers:
                self._numbers[text] = self._stream.add_expression(text)

    def _segment(self, image: NDArray[np.uint8], threshold: float) -> CameraFrame:
        height, width = image.shape[:2]
        if height * width > self._limits.pixels:
            raise InputError(
                f"The camera sends {width}x{height} pixels: at most {self._limits.pixels} are "
                "accepted here"
            )
        self._levels = ()
        frame = Frame(self.frames, time.monotonic() - self._began, image)
        (result,) = self._stream.push(frame)
        self.frames += 1
        if not result.expressions:
            return CameraFrame(image, (), ())
        masks = masks_at(self._levels, threshold, (height, width))
        drawn = draw_overlay(image, masks, result.texts, result.scores, result.expressions)
        return CameraFrame(drawn, result.texts, tuple(map(float, result.scores)))

    @property
    def seconds(self) -> float:
        """Return the seconds since the stream was opened."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Return segmented frames a second."""
        return self.frames / max(self.seconds, 1e-9)

    def silent(self, seconds: float) -> bool:
        """Tell whether no frame has come for so long."""
        return time.monotonic() - self._last > seconds

    def close(self) -> None:
        """Free the stream, behind the frame in hand."""
        with self._busy:
            self._stream.close()

    def _keep(self, index: int, levels: tuple[Levels, ...]) -> None:
        self._levels = levels
