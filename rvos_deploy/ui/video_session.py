"""Segment a visitor's video in a thread, and draw any of its frames at any threshold."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from rvos_deploy.closeable import Closeable
from rvos_deploy.errors import InputError, RvosError
from rvos_deploy.files import discard
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.ui.levels import Levels, levels_render, masks_at
from rvos_deploy.video import VideoReader, open_video
from rvos_deploy.video.drawing.overlay import draw_overlay
from rvos_deploy.video.frames import Frame, Image, VideoInfo

_QUALITY = 92
# Seconds between two looks at a stop.
_STEP = 0.5


@dataclass(frozen=True)
class Limits:
    """Hold what one visitor may ask for.

    Args:
        frames: of a video.
        pixels: of a frame.
        expressions: at a time.
        letters: of an expression.
    """

    frames: int = 2000
    pixels: int = 3840 * 2160
    expressions: int = 8
    letters: int = 300


@dataclass(frozen=True)
class Kept:
    """Hold what is kept of a frame: itself without pixels, and its levels [E]."""

    frame: Frame
    levels: tuple[Levels, ...]


def read_expressions(text: str, limits: Limits) -> list[str]:
    """Return the sentences of a text, one a line. Raises InputError."""
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    if not texts:
        raise InputError("Write what to look for, for example: the small red star")
    if len(texts) > limits.expressions:
        raise InputError(f"{len(texts)} sentences are too many here: at most {limits.expressions}")
    for one in texts:
        if len(one) > limits.letters:
            raise InputError(f"A sentence has {len(one)} letters: at most {limits.letters}")
    return texts


class VideoSession(Closeable):
    """Segment a video from its first frame on. Any thread may look at what is done.

    Attributes:
        expressions: the sentences.
        source: a copy of the video's file, which lives as long as the session.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        source: Path,
        expressions: Sequence[str],
        limits: Limits,
        folder: Path | None = None,
    ) -> None:
        """Open the video, and start; its pictures lie in a new folder of ``folder``.

        Raises RvosError: the video cannot be read.
        """
        self.expressions = tuple(expressions)
        self._limits = limits
        self._folder = Path(tempfile.mkdtemp(prefix="video-", dir=folder))
        try:
            # What was uploaded is removed after a while, and downloads read the video again.
            self.source = self._folder / f"video{source.suffix}"
            _link_or_copy(source, self.source)
            reader = self._opened()
        except RvosError as error:
            discard(self._folder)
            raise InputError(str(error).replace(str(self.source), source.name)) from error
        except BaseException:
            discard(self._folder)
            raise
        self._frames: list[Kept] = []
        self._levels: dict[int, tuple[Levels, ...]] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = False
        self._closed = False
        self._began = time.monotonic()
        self._took = 0.0
        self.error: str | None = None
        self.stopped = False
        threading.Thread(
            target=self._work, args=(segmenter, reader), name="ui video", daemon=True
        ).start()

    def _opened(self) -> VideoReader:
        reader = open_video(self.source, max_frames=self._limits.frames)
        self.info: VideoInfo = reader.info
        if self.info.width * self.info.height > self._limits.pixels:
            reader.close()
            raise InputError(
                f"The video has {self.info.width}x{self.info.height} pixels: at most "
                f"{self._limits.pixels} are accepted here"
            )
        return reader

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of the frames."""
        return self.info.height, self.info.width

    @property
    def count(self) -> int:
        """Return the number of frames that are done."""
        return len(self._frames)

    @property
    def ended(self) -> bool:
        """Tell whether the last frame is done."""
        return self._ended

    def wait_beyond(self, count: int) -> int:
        """Wait until more than ``count`` frames are done, or all; return their number."""
        with self._changed:
            while len(self._frames) <= count and not self._ended:
                self._changed.wait(_STEP)
            return len(self._frames)

    def kept(self, number: int) -> Kept:
        """Return what is kept of a frame, by its place among the frames that are done."""
        return self._frames[number]

    def masks(self, number: int, threshold: float) -> NDArray[np.bool_]:
        """Return the masks bool [E,H,W] of a frame."""
        return masks_at(self._frames[number].levels, threshold, self.size)

    def scores(self, number: int) -> NDArray[np.float32]:
        """Return the scores float32 [E] of a frame: each is that of the best candidate."""
        return np.array([one.score for one in self._frames[number].levels], dtype=np.float32)

    def overlay(self, number: int, threshold: float) -> Image:
        """Return a frame with its masks drawn."""
        image = np.asarray(Picture.open(self._picture(number)).convert("RGB"))
        masks = self.masks(number, threshold)
        return draw_overlay(image, masks, self.expressions, self.scores(number))

    def progress(self) -> str:
        """Describe in one line how far it is."""
        done, total = self.count, self.info.frame_count
        seconds = self._took or time.monotonic() - self._began
        rate = f"{done / seconds:.1f} frames a second" if seconds and done else "starting"
        if self.error:
            return f"Stopped after {done} frames: {self.error}"
        if not self._ended:
            return (
                f"Frame {done}{f' of {min(total, self._limits.frames)}' if total else ''}, {rate}"
            )
        if self.stopped:
            return f"Stopped after {done} frames, {rate}"
        if done == self._limits.frames:
            return f"{done} frames, the most that this page takes, {rate}"
        return f"Done: {done} frames, {rate}"

    def stop(self) -> None:
        """End after the current frame; what is done stays."""
        self._stopping = True

    def close(self) -> None:
        """End, and remove the pictures."""
        self._closed = self._stopping = True
        if self._ended:
            discard(self._folder)

    def _work(self, segmenter: Segmenter, reader: VideoReader) -> None:
        try:
            self._segment(segmenter, reader)
        except RvosError as error:
            self.error = str(error)
        except Exception as error:  # a bug must not leave the page waiting
            self.error = f"{type(error).__name__}: {error}"
        with self._changed:
            self._took = time.monotonic() - self._began
            self._ended = True
            self._changed.notify_all()
        if self._closed:
            discard(self._folder)

    def _segment(self, segmenter: Segmenter, reader: VideoReader) -> None:
        settings = StreamSettings(mode="online")
        render = levels_render(0.5, self._levels.__setitem__)
        with (
            reader,
            segmenter.stream(self.expressions, settings, render=render, keep_images=True) as stream,
        ):
            for frame in reader:
                for result in stream.push(frame):
                    self._keep(result.frame)
                if self._stopping:
                    self.stopped = True
                    return
            if reader.damage and not self.count:
                raise InputError(reader.damage)

    def _keep(self, frame: Frame) -> None:
        image = frame.host_image()
        if image.shape[:2] != self.size:
            raise InputError("the size of the frames changes, which this page does not show")
        Picture.fromarray(image).save(self._picture(self.count), "JPEG", quality=_QUALITY)
        with self._changed:
            levels = self._levels.pop(frame.index)
            self._frames.append(Kept(frame.without_image(), levels))
            self._changed.notify_all()

    def _picture(self, number: int) -> Path:
        return self._folder / f"{number:06d}.jpg"


def _link_or_copy(source: Path, copy: Path) -> None:
    try:
        os.link(source, copy)
    except FileNotFoundError as error:
        raise InputError("The video is here no longer; drop it into the box again") from error
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, copy)
