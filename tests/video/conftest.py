"""Fixtures of the video tests."""

from __future__ import annotations

import sys
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
