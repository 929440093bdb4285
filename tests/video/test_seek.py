"""A start far into a file: frames before it are not decoded, and the others are the same frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import encode, moving_images

from rvos_deploy.errors import InputError
from rvos_deploy.video import SourceOptions, open_video
from rvos_deploy.video.sources import seek
from rvos_deploy.video.sources.selection import Place

FRAMES = 90


@pytest.fixture(autouse=True)
def _seek_in_short_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seek, "_WORTHWHILE", 5)


def clip(path: Path, codec: str, options: dict[str, str]) -> Path:
    """90 frames of 64x48 with a key frame in every eight or so."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 8
        if codec == "mjpeg":
            stream.pix_fmt = "yuvj420p"
        for i, image in enumerate(moving_images(FRAMES)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=stream.pix_fmt
            )
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


CLIPS = [
    ("a.mp4", "libx264", {"g": "8"}),
    ("a.mkv", "libx264", {"g": "8", "x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    ("a.ts", "libx264", {"g": "8"}),
    ("a.mp4", "libx265", {"x265-params": "keyint=8:min-keyint=8:open-gop=1:log-level=none"}),
    ("a.mkv", "libx265", {"x265-params": "keyint=8:min-keyint=8:open-gop=0:log-level=none"}),
    ("a.webm", "libvpx", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("a.webm", "libvpx-vp9", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("a.mp4", "mpeg4", {"bf": "2"}),
    ("a.avi", "mjpeg", {}),
    ("a.mkv", "ffv1", {}),
]
SOUGHT = [True, True, None, True, True, False, True, True, True, True]


@pytest.mark.parametrize(("kind", "sought"), list(zip(CLIPS, SOUGHT, strict=True)))
def test_frames_behind_a_seek_are_those_of_the_whole(
    tmp_path: Path, kind: tuple[str, str, dict[str, str]], sought: bool | None
) -> None:
    name, codec, options = kind
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = clip(tmp_path / name, codec, options)
    with open_video(path) as reader:
        whole = list(reader)
    assert len(whole) == FRAMES
    for start, first in (("41f", 41), ("48f", 48), ("1.64s", 41), ("89f", 89)):
        with open_video(path, options=SourceOptions(start=start)) as reader:
            frames = list(reader)
            assert reader.damage is None
        assert [frame.index for frame in frames] == list(range(first, FRAMES))
        for frame in frames:
            same = whole[frame.index]
            assert (frame.pts, frame.duration) == (same.pts, same.duration)
            assert np.array_equal(frame.image, same.image)
        if sought is None:
            continue
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            point = seek.find_seek_point(container, stream, Place(first, "f"), 0.0)
        assert (point is not None) == sought
        if point is not None:
            assert first - 30 < point.index <= first


def test_a_start_behind_the_end_is_told_with_all_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", {"g": "8"})
    with pytest.raises(InputError, match=r"its first 90 frames, to 3\.56 s, are all outside"):
        open_video(path, options=SourceOptions(start="1:00"))


def test_times_that_jump_are_decoded_from_the_start(tmp_path: Path) -> None:
    """Two streams joined end to end: the second begins with the times of the first."""
    one = encode(tmp_path / "one.ts", moving_images(30)).read_bytes()
    joined = tmp_path / "two.ts"
    joined.write_bytes(one + one)
    with open_video(joined) as reader:
        whole = list(reader)
    with open_video(joined, options=SourceOptions(start="40f")) as reader:
        frames = list(reader)
    assert [frame.index for frame in frames] == list(range(40, len(whole)))
    for frame in frames:
        assert np.array_equal(frame.image, whole[frame.index].image)


def test_frames_before_the_start_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path / "a.mp4", "libx264", {"g": "8"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 4
    data[middle : middle + 200] = bytes(200)  # in frames before the start
    path.write_bytes(data)
    with open_video(path, options=SourceOptions(start="80f")) as reader:
        assert [frame.index for frame in reader] == list(range(80, FRAMES))
        assert reader.damage is None
