"""What a visitor of the page gets, without a browser."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.errors import InputError
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.ui.camera_session import CameraSession
from rvos_deploy.ui.downloads import write_downloads
from rvos_deploy.ui.levels import Levels, levels_render, masks_at
from rvos_deploy.ui.video_session import Limits, VideoSession, read_expressions
from rvos_deploy.ui.visitors import CAMERA_SECONDS, IDLE_SECONDS, Visitors
from rvos_deploy.video import read_video

TEXTS = ["the star that moves to the left", "everything that moves", "the disc"]
FRAMES = 8
LIMITS = Limits()


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with load("tiny", backend="onnxruntime", threads=1) as one:
        yield one


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ui") / "clip.mp4"
    sample_video(file, seed=0, frames=FRAMES)
    return file


@pytest.fixture
def session(segmenter: Segmenter, clip: Path) -> Iterator[VideoSession]:
    with VideoSession(segmenter, clip, TEXTS, LIMITS) as one:
        wait(one)
        yield one


def wait(session: VideoSession) -> None:
    while not session.ended:
        session.wait_beyond(session.count)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5, 0.8])
def test_masks_at_any_threshold_are_those_of_a_stream(
    segmenter: Segmenter, clip: Path, threshold: float
) -> None:
    kept: dict[int, tuple[Levels, ...]] = {}
    settings = StreamSettings(mode="online", threshold=threshold)
    render = levels_render(0.5, kept.__setitem__)
    with (
        segmenter.stream(TEXTS, settings) as stream,
        segmenter.stream(TEXTS, StreamSettings(mode="online"), render=render) as levelled,
    ):
        areas = 0
        for frame in read_video(clip):
            (expected,) = stream.push(frame)
            levelled.push(frame)
            found = masks_at(kept[frame.index], threshold, (128, 224))
            assert (found == expected.masks).all()
            areas += int(found.sum())
    assert areas


def test_a_level_is_a_union_of_the_best_candidates() -> None:
    one, two = ({"size": [1, 2], "counts": counts} for counts in ("01", "02"))
    levels = Levels(0.9, (0.9, 0.4), (one, two))  # type: ignore[arg-type]
    assert [levels.at(value) for value in (0.95, 0.9, 0.5, 0.4, 0.1)] == [None, None, one, one, two]


def test_a_video(session: VideoSession) -> None:
    assert session.count == FRAMES
    assert session.error is None
    assert session.progress().startswith(f"Done: {FRAMES} frames, ")
    image = session.overlay(3, 0.3)
    assert image.shape == (128, 224, 3)
    assert (image != session.overlay(3, 0.95)).any()
    assert session.scores(0).shape == (len(TEXTS),)


def test_downloads_are_those_of_a_run(
    session: VideoSession, clip: Path, tmp_path: Path, rvos: Callable
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    overlay, lines, archive = write_downloads(session, 0.3, folder)
    done = rvos(
        *("run", clip, *TEXTS, "-o", tmp_path / "run", "--mode", "online", "--threshold", 0.3),
        *("--backend", "onnxruntime", "--threads", 1, "--save", "rle,masks,coco,overlay"),
    )
    assert done.code == 0
    expected = [json.loads(x) for x in (tmp_path / "run/frames.ndjson").read_text().splitlines()]
    assert [json.loads(line) for line in lines.read_text().splitlines()] == expected
    assert overlay.stat().st_size > 1000
    with zipfile.ZipFile(archive) as zipped:
        names = set(zipped.namelist())
        masks = {name for name in names if name.startswith("masks/")}
        assert names - masks == {"overlay.mp4", "frames.ndjson", "coco.json"}
        assert len(masks) == FRAMES * len(TEXTS)
        for name in masks:
            assert zipped.read(name) == (tmp_path / "run" / name).read_bytes()


def test_stop_keeps_what_is_done(segmenter: Segmenter, tmp_path: Path) -> None:
    sample_video(tmp_path / "long.mp4", seed=0, frames=100)
    with VideoSession(segmenter, tmp_path / "long.mp4", TEXTS, LIMITS) as session:
        session.wait_beyond(1)
        session.stop()
        wait(session)
        assert 2 <= session.count < 100
        assert session.stopped
        assert session.progress().startswith(f"Stopped after {session.count} frames")
        assert session.overlay(session.count - 1, 0.3).any()


def test_what_is_refused(segmenter: Segmenter, clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(InputError):
        VideoSession(segmenter, text, TEXTS, LIMITS)
    with pytest.raises(InputError, match="224x128 pixels: at most 100"):
        VideoSession(segmenter, clip, TEXTS, Limits(pixels=100))
    for given, found in (
        ("", "Write what to look for"),
        (" \n ", "Write what to look for"),
        ("a\n" * 9, "9 sentences are too many here: at most 8"),
        ("a" * 301, "301 letters: at most 300"),
    ):
        with pytest.raises(InputError, match=found):
            read_expressions(given, LIMITS)
    assert read_expressions(" a \n\nb\n", LIMITS) == ["a", "b"]


def test_a_video_ends_at_the_most_frames(segmenter: Segmenter, clip: Path) -> None:
    with VideoSession(segmenter, clip, TEXTS, Limits(frames=3)) as session:
        wait(session)
        assert session.count == 3
        assert "the most that this page takes" in session.progress()


def test_a_camera_follows_what_the_text_says(segmenter: Segmenter, clip: Path) -> None:
    images = [np.asarray(frame.image) for frame in read_video(clip)]
    with CameraSession(segmenter, LIMITS) as camera:
        first = camera.segment(images[0], [], 0.3)
        assert first is not None
        assert first.scores == ()
        assert (first.picture == images[0]).all()
        second = camera.segment(images[1], TEXTS[:2], 0.05)
        assert second is not None
        assert second.texts == tuple(TEXTS[:2])
        assert len(second.scores) == 2
        assert (second.picture != images[1]).any()
        third = camera.segment(images[2], TEXTS[1:], 0.3)
        assert third is not None
        assert third.texts == tuple(TEXTS[1:])
        with pytest.raises(InputError, match="4000x2100 pixels"):
            camera.segment(np.zeros((2100, 4000, 3), np.uint8), TEXTS, 0.3)
        with ThreadPoolExecutor(4) as threads:  # the newest frame wins
            several = list(threads.map(lambda image: camera.segment(image, TEXTS, 0.3), images))
        done = [one for one in several if one is not None]
        assert 1 <= len(done) < len(several)
        assert camera.frames == 3 + len(done)


@pytest.fixture
def make_visitors(segmenter: Segmenter, tmp_path: Path) -> Callable[[int], Visitors]:
    def make(most: int) -> Visitors:
        folders = tmp_path / "own", tmp_path / "served"
        for folder in folders:
            folder.mkdir()
        return Visitors(segmenter, LIMITS, most, *folders)

    return make


def wait_until_empty(*folders: Path) -> None:
    deadline = time.monotonic() + 60
    while left := [file for folder in folders for file in folder.iterdir()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_visitors_are_apart_and_leave_nothing(
    make_visitors: Callable[[int], Visitors], clip: Path, tmp_path: Path
) -> None:
    sample_video(tmp_path / "long.mp4", seed=0, frames=60)
    visitors = make_visitors(1)
    one, two = visitors.of("one"), visitors.of("two")
    assert visitors.of("one") is one
    assert one is not two
    first = one.start_video(str(tmp_path / "long.mp4"), "a\nb")
    with pytest.raises(InputError, match="1 visitors are busy"):
        two.start_video(str(clip), "a")
    with pytest.raises(InputError, match="Choose a video first"):
        one.start_video(None, "a")
    again = one.start_video(str(clip), "a")  # in place of the other
    wait(first)
    assert first.count < 60
    wait(again)
    two.start_video(str(clip), "a")
    assert one.new_folder() != one.new_folder()
    visitors.leave("one")
    visitors.leave("unknown")
    with pytest.raises(InputError, match="reload it"):
        one.start_video(str(clip), "a")  # a request that was on its way
    visitors.close()
    assert len(visitors) == 0
    wait_until_empty(visitors.folder, visitors.served)


def test_many_starts_of_one_visitor_leave_one_session(
    make_visitors: Callable[[int], Visitors], clip: Path, tmp_path: Path
) -> None:
    sample_video(tmp_path / "long.mp4", seed=0, frames=60)
    visitors = make_visitors(1)
    one = visitors.of("one")
    with ThreadPoolExecutor(4) as threads:
        source = str(tmp_path / "long.mp4")
        sessions = list(threads.map(lambda number: one.start_video(source, "a"), range(4)))
    (kept,) = [session for session in sessions if session is one.video]
    for session in sessions:
        if session is not kept:
            wait(session)
            assert session.count < 60
    with pytest.raises(InputError, match="1 visitors are busy"):
        visitors.of("two").start_video(str(clip), "a")
    visitors.close()
    wait_until_empty(visitors.folder, visitors.served)


def test_a_place_is_free_again_when_a_start_fails(
    make_visitors: Callable[[int], Visitors], clip: Path, tmp_path: Path
) -> None:
    visitors = make_visitors(1)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    for source, found in (("no.mp4", "no.mp4 is not a video"), ("gone.mp4", "here no longer")):
        with pytest.raises(InputError, match=found) as refused:
            visitors.of("one").start_video(str(tmp_path / source), "a")
        assert str(visitors.folder) not in str(refused.value)
    wait(visitors.of("two").start_video(str(clip), "a"))
    visitors.close()
    wait_until_empty(visitors.folder, visitors.served)


def test_a_silent_camera_frees_its_place(
    make_visitors: Callable[[int], Visitors], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors, ahead = make_visitors(1), [0.0]
    clock = time.monotonic
    monkeypatch.setattr("rvos_deploy.ui.camera_session.time.monotonic", lambda: clock() + ahead[0])
    one, two = visitors.of("one"), visitors.of("two")
    camera = one.open_camera()
    visitors.sweep()
    with pytest.raises(InputError, match="1 visitors are busy"):
        two.open_camera()
    ahead[0] = CAMERA_SECONDS + 0.1
    two.open_camera()
    assert camera.silent(CAMERA_SECONDS)
    visitors.sweep()
    assert one.camera is None
    assert two.camera is not None
    visitors.close()


def test_what_a_silent_visitor_left_is_removed(
    make_visitors: Callable[[int], Visitors], clip: Path
) -> None:
    visitors = make_visitors(1)
    for name in ("gone", "here"):
        wait(visitors.of(name).start_video(str(clip), "a"))
        visitors.of(name).show(np.zeros((8, 8, 3), np.uint8))
    visitors.sweep()
    assert len(visitors) == 2
    visitors.of("gone").used -= IDLE_SECONDS
    visitors.sweep()
    assert len(visitors) == 1
    assert len(list(visitors.folder.iterdir())) == len(list(visitors.served.iterdir())) == 1
    visitors.close()
    wait_until_empty(visitors.folder, visitors.served)


def test_few_visitors_keep_results(make_visitors: Callable[[int], Visitors], clip: Path) -> None:
    visitors = make_visitors(1)
    for number in range(6):  # as from a program that invents names
        wait(visitors.of(str(number)).start_video(str(clip), "a"))
    visitors.sweep()
    assert len(visitors) == 4
    assert len(list(visitors.folder.iterdir())) == 4
    assert visitors.of("0").video is None  # the oldest
    assert visitors.of("5").video is not None
    visitors.close()


def test_shown_pictures_are_files_of_their_own_and_few(
    make_visitors: Callable[[int], Visitors],
) -> None:
    visitors = make_visitors(1)
    image = np.full((8, 12, 3), 90, dtype=np.uint8)
    files = [Path(visitors.of("one").show(image)) for _ in range(200)]
    assert len(set(files)) == 200
    left = [file for file in files if file.exists()]
    assert left == files[-50:]
    assert visitors.served in files[0].parents
    visitors.leave("one")
    wait_until_empty(visitors.served)
