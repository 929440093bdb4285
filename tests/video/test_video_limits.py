"""Headers that lie about sizes, times and rates."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from hostile_images import black_png
from video_clips import encode, moving_images, store

from rvos_deploy.errors import VideoError
from rvos_deploy.images import MAX_SIDE
from rvos_deploy.video import open_video
from rvos_deploy.video.sources.geometry import Display


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def two_bytes(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


# 20,000x20,000 is more than FFmpeg itself takes: it forgets the size.
@pytest.mark.parametrize(
    ("height", "width", "told"),
    [
        (9_500, 9_500, "9500x9500 is too large: at most"),
        (20_000, 1, "1x20000 is too large: at most"),
        (1, 20_000, "20000x1 is too large: at most"),
        (20_000, 20_000, "could not be decoded"),
    ],
)
def test_a_header_that_claims_too_much_is_refused_by_name(
    tmp_path: Path, height: int, width: int, told: str
) -> None:
    path = encode(tmp_path / "a.mov", moving_images(3), codec="qtrle", pix_fmt="rgb24")
    # The visual sample entry: width and height, then 72 dpi.
    patched(path, two_bytes(64, 48, 72, 0), two_bytes(width, height, 72, 0))
    with pytest.raises(VideoError, match=rf"a\.mov .*{told}"):
        open_video(path)


@pytest.mark.parametrize("name", ["a.mov", "a.avi", "a.nut"])
def test_a_frame_that_is_too_large_ends_the_video_before_it_is_decoded(
    tmp_path: Path, name: str
) -> None:
    small, large = black_png(64, 48), black_png(20_000, 20_000)
    path = store(tmp_path / name, "png", (48, 64), [small, small, large, small])
    with open_video(path) as reader:
        assert len(list(reader)) == 2
        assert "decoding stopped after 2 frames" in str(reader.damage)
    with open_video(path, on_damage="skip") as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (1, 20_000)])
def test_pictures_too_large_are_one_line_in_folders_files_and_pipes(
    tmp_path: Path,
    piped: Callable[[bytes], str],
    width: int,
    height: int,
) -> None:
    data = black_png(width, height)
    path = tmp_path / "0.png"
    path.write_bytes(data)
    for source in (path, tmp_path):
        with pytest.raises(VideoError, match=r"0\.png.*is too large: at most") as caught:
            open_video(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match="no frame of standard input"):
        open_video(piped(data))


def test_an_aspect_ratio_cannot_make_a_frame_too_large() -> None:
    frame = VideoFrame.from_ndarray(np.zeros((2, 4000, 3), np.uint8), format="rgb24")
    with pytest.raises(VideoError, match="40000x2 is too large"):
        Display(Fraction(10)).to_rgb(frame)
    assert Display(Fraction(4)).to_rgb(frame).shape == (2, 16_000, 3)
    assert MAX_SIDE < 40_000


@pytest.mark.parametrize("tag", ["inf:00:00", "nan:00:00", "-1e400:0:0", "1e308:00:00", "a:b"])
def test_a_duration_that_is_no_number_is_not_believed(tmp_path: Path, tag: str) -> None:
    path = encode(tmp_path / "a.mkv", moving_images(5))
    start = path.read_bytes().index(b"00:00:00.200")
    data = bytearray(path.read_bytes())
    data[start : start + 18] = tag.encode().ljust(18, b"\0")
    path.write_bytes(data)
    with open_video(path) as reader:
        assert len(list(reader)) == 5


def test_a_stream_may_change_its_pixel_format(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{depth}.ts" for depth in ("yuv420p", "yuv422p")]
    for path in pictures:
        encode(path, moving_images(12), pix_fmt=path.stem)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(path.read_bytes() for path in pictures))
    with open_video(joined, on_damage="skip") as reader:
        assert len(list(reader)) >= 23
