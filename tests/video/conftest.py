"""Fixtures of the video tests."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# pytest's importlib mode leaves this folder off the path; the tests here share video_clips.py.
sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def media() -> Path:
    """Folder of real clips; the test is skipped where it is absent."""
    for folder in (ROOT / "shared" / "media", ROOT.parent / "shared" / "media"):
        if folder.is_dir():
            return folder
    pytest.skip("shared/media is not here")


@pytest.fixture
def plain_clip(tmp_path: Path) -> Path:
    """Thirty frames of 64x48 at 25 fps, with B-frames."""
    from video_clips import encode, moving_images

    return encode(tmp_path / "plain.mp4", moving_images(30), movflags="+faststart")


@pytest.fixture
def inputs(media: Path) -> Path:
    """Folder of small inputs that failed once; the test is skipped where it is absent."""
    folder = media.parent / "inputs"
    if not folder.is_dir():
        pytest.skip("shared/inputs is not here")
    return folder


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], str]]:
    """Pipe bytes into this process's standard input; gives the name of that source."""
    opened = []

    def pipe(data: bytes) -> str:
        out, into = os.pipe()

        def write() -> None:
            # The reader may close its end before everything was written.
            with suppress(BrokenPipeError), os.fdopen(into, "wb") as file:
                file.write(data)

        threading.Thread(target=write, daemon=True).start()
        stream = os.fdopen(out)
        opened.append(stream)
        monkeypatch.setattr("sys.stdin", stream)
        return "-"

    yield pipe
    for stream in opened:
        stream.close()
