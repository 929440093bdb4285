"""Keep apart what each visitor of the page does, and end it when the visitor leaves."""

from __future__ import annotations

import threading
from pathlib import Path
from tempfile import mkdtemp

from rvos_deploy.errors import InputError
from rvos_deploy.files import discard
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.ui.camera_session import CameraSession
from rvos_deploy.ui.video_session import Limits, VideoSession, read_expressions


class Visitor:
    """Hold the video and the camera of one open page."""

    def __init__(self, visitors: Visitors) -> None:
        self._visitors = visitors
        self._folder: Path | None = None
        self.video: VideoSession | None = None
        self.camera: CameraSession | None = None

    def start_video(self, source: str | None, text: str) -> VideoSession:
        """Segment a video in place of the one before. Raises RvosError."""
        limits = self._visitors.limits
        texts = read_expressions(text, limits)
        if not source:
            raise InputError("Choose a video first: drop a file into the box on the left")
        self.close_video()
        self._visitors.admit(self)
        self.video = VideoSession(
            self._visitors.segmenter, Path(source), texts, limits, self._visitors.folder
        )
        return self.video

    def open_camera(self) -> CameraSession:
        """Return the camera's stream. Raises RvosError."""
        if self.camera is None:
            self._visitors.admit(self)
            self.camera = CameraSession(self._visitors.segmenter, self._visitors.limits)
        return self.camera

    def new_folder(self) -> Path:
        """Return an empty folder for downloads; the one before is removed."""
        if self._folder is not None:
            discard(self._folder)
        self._folder = Path(mkdtemp(prefix="files-", dir=self._visitors.folder))
        return self._folder

    @property
    def busy(self) -> bool:
        """Tell whether something runs."""
        return self.camera is not None or (self.video is not None and not self.video.ended)

    def close_video(self) -> None:
        """End the video, and remove its pictures."""
        if self.video is not None:
            self.video.close()
            self.video = None

    def close_camera(self) -> None:
        """End the camera's stream."""
        if self.camera is not None:
            self.camera.close()
            self.camera = None

    def close(self) -> None:
        """End everything, and remove all files."""
        self.close_video()
        self.close_camera()
        if self._folder is not None:
            discard(self._folder)


class Visitors:
    """Hold the visitors by the name of their session. Threads may share it."""

    def __init__(self, segmenter: Segmenter, limits: Limits, most: int, folder: Path) -> None:
        """``most``: streams at a time; ``folder``: for their files."""
        self.segmenter, self.limits, self.folder = segmenter, limits, folder
        self._most = most
        self._visitors: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Visitor:
        """Return the visitor of a session."""
        with self._lock:
            return self._visitors.setdefault(session or "", Visitor(self))

    def admit(self, visitor: Visitor) -> None:
        """Raise InputError if too many others are busy."""
        with self._lock:
            others = sum(one.busy for one in self._visitors.values() if one is not visitor)
        if others >= self._most:
            raise InputError(f"{others} visitors are busy, the most for this page; try again soon")

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
