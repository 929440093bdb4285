"""``run`` on every kind of source, and its options, as a user writes them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import Connection
from PIL import Image
from rtsp_server import Camera

ARGUMENTS = ("--size", "64x96", "--fallback", "top1")


@pytest.fixture
def segment(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> Callable:
    """Run on one source; give the result and ``result.json``."""

    def call(source: object, *options: object) -> tuple[Any, dict[str, Any]]:
        out = tmp_path / "out"
        result = rvos("run", source, "the ball", "-b", tiny_bundle, "-o", out, *ARGUMENTS, *options)
        file = out / "result.json"
        return result, json.loads(file.read_text()) if file.exists() else {}

    return call


def indices(found: dict[str, Any]) -> list[int]:
    return [frame["index"] for frame in found["frames"]]


@pytest.mark.parametrize(("options", "wanted"), [
    (("--start", "2f"), [2, 3, 4, 5]),
    (("--start", "0.2s", "--end", "0.4s"), [2, 3]),
    (("--start", "0:00.1", "--stride", "2f"), [1, 3, 5]),
    (("--stride", "0.25s"), [0, 3, 5]),
    (("--stride", "2f", "--max-frames", "2"), [0, 2]),
])  # fmt: skip
def test_frames_are_selected(
    segment: Callable, video: Path, options: tuple[str, ...], wanted: list[int]
) -> None:
    result, found = segment(video, *options)
    assert (result.code, result.stderr) == (0, "")
    assert indices(found) == wanted
    assert [frame["pts"] for frame in found["frames"]] == pytest.approx([i / 10 for i in wanted])


@pytest.mark.parametrize(("options", "message"), [
    (("--start", "10"), "--start '10' is neither a time nor a number of frames; write seconds as"),
    (("--start", "3f", "--end", "2f"), "--end 2f is not behind --start 3f"),
    (("--start", "1:00"), "no frame of clip.mp4 (codec h264) is selected: its first 6 frames"),
    (("--raw", "640"), "--raw '640' is not WIDTHxHEIGHT@RATE, for example 640x480@25"),
    (("--policy", "latest"), "--policy latest drops frames of live sources, and clip.mp4 is none"),
    (("--max-latency", "1"), "--max-latency needs --policy latest"),
    (("--video-stream", "3"), "has no video stream 3; there are: 0: 80x48"),
    (("--policy", "newest"), "invalid value for '--policy'"),
])  # fmt: skip
def test_wrong_options_are_one_line(
    segment: Callable, video: Path, options: tuple[str, ...], message: str
) -> None:
    result, found = segment(video, *options)
    assert result.code == 2
    assert message in result.error
    assert not found


def test_a_glob_and_a_folder(segment: Callable, frame_folder: Path) -> None:
    result, found = segment(f"{frame_folder}/[12].png")
    assert (result.code, result.stderr) == (0, "")
    assert len(found["frames"]) == 2
    assert len(segment(frame_folder)[1]["frames"]) == 3


def test_a_glob_whose_masks_would_replace_its_images(
    rvos: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks" / "0"
    masks.mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(masks / "0.png")
    result = rvos("run", f"{masks.parent}/*/*.png", "it", "-b", tiny_bundle, "-o", tmp_path)
    assert result.code == 2
    assert "its output would replace it" in result.error


def test_raw_frames_on_standard_input(
    start: Callable[..., subprocess.Popen[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 48, 64, 3), np.uint8).tobytes()
    (tmp_path / "a.rgb").write_bytes(frames)
    with (
        (tmp_path / "a.rgb").open("rb") as file,
        subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat,
    ):
        child = start(
            *("run", "-", "it", "--raw", "64x48@25", "-b", tiny_bundle, "-o", tmp_path / "out"),
            stdin=cat.stdout,
        )
        _, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [frame["pts"] for frame in found["frames"]] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert found["settings"]["raw"] == "64x48@25"


def test_a_camera_that_is_absent(segment: Callable) -> None:
    result, found = segment("97")
    assert result.code == 2
    assert result.error.startswith("there is no camera 97 (/dev/video97); cameras here: ")
    assert not found


def test_a_camera_over_http_that_drops_and_comes_back(
    segment: Callable, live_server: Callable, make_video: Callable, tmp_path: Path
) -> None:
    stream = make_video(tmp_path / "a.ts", 60, fps=25).read_bytes()
    server = live_server(Connection(stream, "drop"), Connection(stream))
    result, found = segment(server.url, "--policy", "latest", "--max-latency", "0.2")
    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert f"--policy latest: {found['live']['dropped']} frames dropped" in lines[1]
    assert lines[2] == "the connection was lost and made again 1 time"
    assert found["live"]["reconnects"] == 1
    assert found["live"]["max_latency"] == 0.2
    assert found["settings"]["mode"] == "online"
    for order, frame in enumerate(found["frames"]):
        assert frame["index"] == order + frame["dropped"]


def test_a_camera_that_stays_away(
    segment: Callable, live_server: Callable, make_video: Callable, tmp_path: Path
) -> None:
    stream = make_video(tmp_path / "a.ts", 60, fps=25).read_bytes()
    server = live_server(Connection(stream, "drop"), Connection(refuse=True))
    result, found = segment(server.url, "--reconnect", "0.5")
    assert result.code == 1
    (line,) = result.stderr.splitlines()
    assert "the connection was lost after" in line
    assert f"the {len(found['frames'])} frames before the damage are complete" in line


def test_a_slow_run_says_how_far_it_is_behind(
    segment: Callable, live_server: Callable, make_video: Callable, tmp_path: Path
) -> None:
    """60 frames that claim to be 1000 a second: no network keeps up with them."""
    stream = make_video(tmp_path / "a.ts", 60, fps=1000).read_bytes()
    server = live_server(Connection(stream))
    result, found = segment(server.url)
    assert result.code == 0
    assert found["live"]["policy"] == "every"
    assert found["live"]["behind_seconds"] > 0
    assert len(found["frames"]) == 60
    if found["live"]["behind_seconds"] >= 1:
        assert "s behind the source's clock at the end; for a live source" in result.stdout


def test_a_real_rtsp_camera(segment: Callable, rtsp_camera: Camera) -> None:
    result, found = segment(rtsp_camera.url, "--policy", "latest", "--max-frames", "10")
    assert (result.code, result.stderr) == (0, "")
    assert len(found["frames"]) == 10
    assert "secret" not in json.dumps(found)
    for order, frame in enumerate(found["frames"]):
        assert frame["index"] == order + frame["dropped"]


# --- Expressions that the network cannot know -----------------------------------------------------


def test_words_of_another_script_are_warned_about_once(
    rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    texts = ("左边的红色圆圈", "الكلب البني", "the café, à côté", "the red ball")
    result = rvos("run", video, *texts, "-b", tiny_bundle, "-o", tmp_path / "out", *ARGUMENTS)
    assert result.code == 0
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    for text, line in zip(texts[:2], lines, strict=True):
        assert line.startswith(f"warning: the network's vocabulary has no words for '{text}'")
        assert "English" in line
