"""Start ``rtsp_camera.py``, stop it for a while, kill it, start it again."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PROGRAM = Path(__file__).parent / "rtsp_camera.py"
_PYTHON = Path("/usr/bin/python3")


class Camera:
    """A server on one port of loopback, with the life of a camera."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://user:secret@127.0.0.1:{self.port}/live"

    def start(self) -> bool:
        """Serve on the port of before; tell whether this machine can."""
        if not _PYTHON.exists():
            return False
        self._process = subprocess.Popen(
            [_PYTHON, "-I", str(_PROGRAM), str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.port = int(line or 0)
        return bool(line)

    def stall(self) -> None:
        """Stop without closing the connection, like a camera whose cable is pulled."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def rtsp_camera() -> Iterator[Camera]:
    """A camera that serves; the test is skipped where GStreamer's server is absent."""
    camera = Camera()
    if not camera.start():
        camera.kill()
        pytest.skip(
            "needs apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good"
        )
    yield camera
    camera.kill()
