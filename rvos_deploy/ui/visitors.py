"""Keep apart what each visitor of the page does, and end it when the visitor leaves."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image as Picture

from rvos_deploy.errors import InputError
from rvos_deploy.files import discard
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.ui.camera_session import CameraSession
from rvos_deploy.ui.video_session import Limits, VideoSession, read_expressions
from rvos_deploy.video.frames import Image

IDLE_SECONDS = 3600.0
"""Seconds after which what a silent visitor has made is removed."""
CAMERA_SECONDS = 5.0
"""Seconds without a frame after which a camera's stream is closed."""
_KEPT_PER_BUSY = 4
# A browser fetches a picture at once; these are some seconds of a camera.
_SHOWN = 50
_QUALITY = 90


class Visitor:
    """Hold the video and the camera of one open page. Threads may share it."""

    def __init__(self, visitors: Visitors) -> None:
        self._visitors = visitors
        self._lock = threading.RLock()
        self._folder: Path | None = None
        self._downloads: Path | None = None
        self._shown: deque[Path] = deque()
        self._numbers = itertools.count()
        self._starting = self._closed = False
        self.threshold = 0.5
        """The newest one that the visitor chose; a running video follows it."""
        self.used = time.monotonic()
        """When the visitor last did something, by ``time.monotonic``."""
        self.video: VideoSession | None = None
        self.camera: CameraSession | None = None

    def start_video(self, source: str | None, text: str) -> VideoSession:
        """Segment a video in place of the one before. Raises RvosError."""
        limits = self._visitors.limits
        texts = read_expressions(text, limits)
        if not source:
            raise InputError("Choose a video first: drop a file into the box on the left")
        with self._lock:
            self._check_open()
            self.close_video()
            self._visitors.admit(self)
            try:
                self.video = VideoSession(
                    self._visitors.segmenter, Path(source), texts, limits, self._visitors.folder
                )
            finally:
                self._starting = False
            return self.video

    def open_camera(self) -> CameraSession:
        """Return the camera's stream. Raises RvosError."""
        with self._lock:
            self._check_open()
            if self.camera is None:
                self._visitors.admit(self)
                try:
                    self.camera = CameraSession(self._visitors.segmenter, self._visitors.limits)
                finally:
                    self._starting = False
            return self.camera

    def show(self, image: Image) -> str:
        """Write a picture that the page shows, and return its file; older ones go.

        Gradio would name a file by its content, and write it again while a browser reads it.
        """
        with self._lock:
            self._check_open()
            self.used = time.monotonic()
            file = self._own_folder() / f"{next(self._numbers)}.jpeg"
            Picture.fromarray(image).save(file, "JPEG", quality=_QUALITY)
            self._shown.append(file)
            if len(self._shown) > _SHOWN:
                self._shown.popleft().unlink(missing_ok=True)
            return str(file)

    def new_folder(self) -> Path:
        """Return an empty folder for downloads; the one before is removed."""
        with self._lock:
            self._check_open()
            if self._downloads is not None:
                discard(self._downloads)
            self._downloads = Path(mkdtemp(prefix="files-", dir=self._own_folder()))
            return self._downloads

    @property
    def busy(self) -> bool:
        """Tell whether something runs."""
        camera, video = self.camera, self.video
        return (
            self._starting
            or (camera is not None and not camera.silent(CAMERA_SECONDS))
            or (video is not None and not video.ended)
        )

    @property
    def keeps(self) -> bool:
        """Tell whether results are kept."""
        return self.video is not None

    def reserve(self) -> None:
        """Count as busy from now on; called by ``Visitors.admit``."""
        self._starting = True

    def close_video(self) -> None:
        """End the video, and remove its pictures."""
        with self._lock:
            if self.video is not None:
                self.video.close()
                self.video = None

    def close_camera(self) -> None:
        """End the camera's stream."""
        with self._lock:
            if self.camera is not None:
                self.camera.close()
                self.camera = None

    def close_silent_camera(self) -> None:
        """End the camera's stream if no frame has come for a while."""
        camera = self.camera
        if camera is not None and camera.silent(CAMERA_SECONDS):
            self.close_camera()

    def close(self) -> None:
        """End everything, and remove all files."""
        with self._lock:
            self._closed = True
            self.close_video()
            self.close_camera()
            if self._folder is not None:
                discard(self._folder)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("This page was closed; reload it")

    def _own_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="visitor-", dir=self._visitors.served))
        return self._folder


class Visitors:
    """Hold the visitors by the name of their session. Threads may share it."""

    def __init__(
        self, segmenter: Segmenter, limits: Limits, most: int, folder: Path, served: Path
    ) -> None:
        """Create it.

        Args:
            segmenter: loaded.
            limits: of a visitor.
            most: visitors that are busy at a time.
            folder: for files that only this process reads.
            served: for files that the page serves to who knows their names.
        """
        self.segmenter, self.limits = segmenter, limits
        self.folder, self.served = folder, served
        self._most = most
        self._visitors: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Visitor:
        """Return the visitor of a session."""
        with self._lock:
            visitor = self._visitors.setdefault(session or "", Visitor(self))
        visitor.used = time.monotonic()
        return visitor

    def admit(self, visitor: Visitor) -> None:
        """Count a visitor as busy. Raises InputError: too many others are."""
        with self._lock:
            others = sum(one.busy for one in self._visitors.values() if one is not visitor)
            if others < self._most:
                visitor.reserve()
                return
        raise InputError(f"{others} visitors are busy, the most for this page; try again soon")

    def sweep(self) -> None:
        """Close silent cameras, and remove what visitors left who do nothing anymore."""
        with self._lock:
            visitors = list(self._visitors.items())
        for _, visitor in visitors:
            visitor.close_silent_camera()
        idle = [(name, one) for name, one in visitors if not one.busy]
        idle.sort(key=lambda pair: pair[1].used)
        keeping = [name for name, one in idle if one.keeps]
        surplus = set(keeping[: max(0, len(keeping) - _KEPT_PER_BUSY * self._most)])
        for name, visitor in idle:
            if name in surplus or time.monotonic() - visitor.used > IDLE_SECONDS:
                self.leave(name)

    def leave(self, session: str | None) -> None:
        """End what a visitor does."""
        with self._lock:
            visitor = self._visitors.pop(session or "", None)
        if visitor is not None:
            visitor.close()

    def close(self) -> None:
        """End everything."""
        with self._lock:
            visitors = list(self._visitors.values())
            self._visitors.clear()
        for visitor in visitors:
            visitor.close()

    def __len__(self) -> int:
        return len(self._visitors)
