"""A run over a live source: dropped frames are counted, and no frame gets the mask of another."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame, SourceOptions, VideoInfo, open_video
from rvos_deploy.video.sinks.base import FrameResult, Sink

SETTINGS = StreamSettings(mode="online", size=PROBE_BOX, fallback="top1")
TEXTS = ["the ball", "the red square"]


def picture(index: int) -> np.ndarray:
    """A square whose place and colour say which frame it is."""
    image = np.full((48, 80, 3), 30 + index, np.uint8)
    left = (7 * index) % 60
    image[10:30, left : left + 20] = (255 - 3 * index, 3 * index, 128)
    return image


class Burst:
    """A camera of 40 frames that sees five more, at once, whenever a result is written."""

    info = VideoInfo(80, 48, 25.0, None, "burst", Fraction(1, 1000))

    def __init__(self) -> None:
        self.written = threading.Semaphore(1)

    def frames(self) -> Iterator[Frame]:
        for index in range(40):
            if index % 5 == 0:
                self.written.acquire(timeout=30)
            yield Frame(index, index / 25, picture(index), 0.04)


class Keep(Sink):
    """Keeps the results, and lets the camera go on."""

    def __init__(self, camera: Burst) -> None:
        self._camera = camera
        self.results: list[tuple[Frame, np.ndarray]] = []

    def write(self, result: FrameResult) -> None:
        self.results.append((result.frame, result.masks.copy()))
        self._camera.written.release()


def test_latest(segmenter: Segmenter, tmp_path: Path) -> None:
    camera = Burst()
    keep = Keep(camera)
    options = RunOptions(SETTINGS, reading=SourceOptions(policy="latest"))
    report = run(segmenter, camera, TEXTS, tmp_path, sinks=["json", "masks", keep], options=options)
    assert report.damage is None
    assert report.live is not None
    assert report.live.dropped == 40 - report.frames > 0

    # The masks are those that the frames that were read give, each for its own frame.
    with segmenter.stream(TEXTS, SETTINGS) as stream:
        for frame, masks in keep.results:
            assert np.array_equal(frame.image, picture(frame.index))
            assert frame.pts == frame.index / 25
            (result,) = stream.push(Frame(frame.index, frame.pts, picture(frame.index)))
            assert np.array_equal(result.masks, masks)

    found = json.loads((tmp_path / "result.json").read_text())
    assert found["live"]["policy"] == "latest"
    assert found["live"]["dropped"] == report.live.dropped
    assert found["settings"]["policy"] == "latest"
    read = [frame.index for frame, _ in keep.results]
    for order, entry in enumerate(found["frames"]):
        assert entry["index"] == read[order] == order + entry["dropped"]
        assert entry["pts"] == entry["index"] / 25
    masks = sorted(path.name for path in (tmp_path / "masks" / "0").iterdir())
    assert masks == [f"{index:05d}.png" for index in read]


def test_every(segmenter: Segmenter, tmp_path: Path) -> None:
    camera = Burst()
    keep = Keep(camera)
    report = run(
        segmenter, camera, TEXTS, tmp_path, sinks=["json", keep], options=RunOptions(SETTINGS)
    )
    assert report.frames == 40
    assert report.live is not None
    assert (report.live.policy, report.live.dropped) == ("every", 0)
    found = json.loads((tmp_path / "result.json").read_text())
    assert {entry["dropped"] for entry in found["frames"]} == {0}


def test_a_file_has_no_live_report(segmenter: Segmenter, tmp_path: Path, video: Path) -> None:
    reading = SourceOptions(start="1f", stride="2f")
    options = RunOptions(SETTINGS, reading=reading)
    report = run(segmenter, video, TEXTS, tmp_path, sinks=["json", "masks"], options=options)
    assert (report.frames, report.live) == (3, None)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["live"] is None
    assert (found["settings"]["start"], found["settings"]["stride"]) == ("1f", "2f")
    assert [entry["index"] for entry in found["frames"]] == [1, 3, 5]
    masks = sorted(path.name for path in (tmp_path / "masks" / "1").iterdir())
    assert masks == ["00001.png", "00003.png", "00005.png"]


def test_an_open_reader(segmenter: Segmenter, tmp_path: Path, video: Path) -> None:
    reader = open_video(video, max_frames=2)
    report = run(segmenter, reader, TEXTS, tmp_path, sinks=["json"], options=RunOptions(SETTINGS))
    assert report.frames == 2
    assert list(reader) == []
