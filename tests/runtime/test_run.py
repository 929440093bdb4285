"""A run from Python: sources and sinks of one's own, all or nothing of a frame, one store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvos_deploy import spill_store
from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame, VideoInfo, open_video, read_video
from rvos_deploy.video.sinks.base import FrameResult, Sink, SinkRequest
from rvos_deploy.video.sinks.outputs import FileOutput
from rvos_deploy.video.sinks.registry import SINKS, SinkType
from rvos_deploy.video.sources.base import OpenedSource, SourceRequest, SourceType
from rvos_deploy.video.sources.decode_errors import DecodeErrors
from rvos_deploy.video.sources.file import FILE
from rvos_deploy.video.sources.registry import SOURCES, has_end, source_type

TEXT = "the ball"
MILLISECOND = Fraction(1, 1000)


def options(**changes: Any) -> RunOptions:
    one = {"size": PROBE_BOX, "fallback": "top1", "mode": "offline", **changes.pop("stream", {})}
    return RunOptions(StreamSettings(**one), **changes)  # type: ignore[arg-type]


class Log(Sink):
    """Writes down what it is asked; fails where it is told to."""

    needs_images = False

    def __init__(self, fail: str = "") -> None:
        self.calls: list[str] = []
        self.shown: list[int] = []
        self._fail, self._last = fail, -1

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fail:
            raise InputError(f"{name} cannot be done")

    def open(self, info: VideoInfo, expressions: Sequence[str]) -> None:
        self._call(f"open {info.width}x{info.height} {list(expressions)}")

    def write(self, result: FrameResult) -> None:
        self._last = result.frame.index
        self._call(f"write {self._last}")

    def commit(self) -> None:
        self._call(f"commit {self._last}")
        self.shown.append(self._last)

    def rollback(self) -> None:
        self.calls.append("rollback")
        self.shown = [index for index in self.shown if index != self._last]

    def finish(self) -> None:
        self._call("finish")

    def abort(self) -> None:
        self.calls.append("abort")


# --- A source and a sink from outside, each a line of its registry --------------------------------


def _open_slope(request: SourceRequest, errors: DecodeErrors) -> OpenedSource:
    width, selector = int(request.name.partition(":")[2]), request.selection.selector()

    def frames() -> Iterator[Frame]:
        for index in range(5):
            if selector.choose(index, index / 10) == "end":
                break
            image = np.full((48, width, 3), 20 * index, np.uint8)
            image[:, index * 4 : index * 4 + 16] = 200
            yield Frame(index, index / 10, image, 0.1)
        errors.stop("the slope ends")

    info = VideoInfo(width, 48, 10.0, None, "slope", MILLISECOND)
    return OpenedSource(info, frames(), ("is not a video",))


SLOPE = SourceType(lambda name, format: name.startswith("slope:"), _open_slope, live=True)


class Areas(Sink):
    """One line a frame: index, time, area of each mask, brightness of the image."""

    def __init__(self, request: SinkRequest) -> None:
        self._path, self._summary = request.out / "areas.txt", request.summary
        self._lines: list[str] = []

    def write(self, result: FrameResult) -> None:
        areas = [int(mask.sum()) for mask in result.masks]
        light = result.frame.host_image().max()
        self._lines.append(f"{result.frame.index} {result.frame.pts:g} {areas} {light}")

    def finish(self) -> None:
        notes = self._summary()["notes"]
        self._path.write_text("\n".join([*self._lines, *notes]), encoding="utf-8")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "slope", SLOPE)
    areas = SinkType(Areas, "areas.txt", (FileOutput("areas.txt"),))
    monkeypatch.setitem(SINKS, "areas", areas)


@pytest.mark.usefixtures("registered")
@pytest.mark.filterwarnings("ignore:slope is not a video:RuntimeWarning")
def test_a_source_and_a_sink_are_a_line_in_their_registries(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    log = Log()
    chosen = ["json", "areas", log, "masks"]
    report = run(segmenter, "slope:80", [TEXT], out, sinks=chosen, options=options(max_frames=3))
    assert (report.frames, report.damage, report.stopped) == (3, "the slope ends", None)
    assert {path.name for path in out.iterdir()} == {"masks", "result.json", "areas.txt"}
    found = json.loads((out / "result.json").read_text())
    areas = [[one["area"] for one in frame["expressions"]] for frame in found["frames"]]
    assert (out / "areas.txt").read_text().splitlines() == [
        *(f"{index} {index / 10:g} {areas[index]} 200" for index in range(3)),
        "is not a video",
    ]
    assert found["settings"]["video"] == "slope:80"
    assert log.calls == [
        f"open 80x48 {[TEXT]}",
        *(f"{step} {index}" for index in range(3) for step in ("write", "commit")),
        "finish",
        "abort",
    ]


@pytest.mark.usefixtures("registered")
@pytest.mark.filterwarnings("ignore:slope is not a video:RuntimeWarning")
def test_the_public_functions_and_the_command_line_know_the_source(
    rvos: Callable, output: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.warns(RuntimeWarning, match="is damaged: the slope ends"):
        assert len(list(read_video("slope:64"))) == 5
    with open_video("slope:64", max_frames=2) as reader:
        assert [frame.image.shape for frame in reader] == [(48, 64, 3)] * 2  # type: ignore[union-attr]
    out = output(tmp_path / "out")
    result = rvos("run", "slope:64", TEXT, "-b", tiny_bundle, "-o", out.folder, "--size", "64x96")
    assert result.code == 1
    assert "5 frames, 1 expression, online" in result.stdout
    assert "the slope ends" in result.stderr
    out.check(frames=5, expressions=1, size=(48, 64))


def test_names_are_of_one_kind_each(video: Path, frame_folder: Path) -> None:
    names = [str(video), str(frame_folder), "-", "rtsp://host/a", "/dev/null", f"file:{video}", "x"]
    for name in names:
        assert sum(kind.matches(name, None) for kind in SOURCES.values()) == 1
    assert [has_end(name) for name in names] == [True, True, False, False, False, True, True]
    assert source_type(f"file:{video}") is FILE
    assert source_type(":0", "x11grab") is SOURCES["device"]


# --- Open sources, and chosen sinks ---------------------------------------------------------------


class Three:
    """A source of one's own: three frames."""

    info = VideoInfo(80, 48, 10.0, 3, "three", MILLISECOND)
    closed = False

    def frames(self) -> Iterator[Frame]:
        for index in range(3):
            yield Frame(index, index / 10, np.full((48, 80, 3), 60 * index, np.uint8), 0.1)

    def close(self) -> None:
        self.closed = True


def test_a_source_of_ones_own(segmenter: Segmenter, tmp_path: Path, output: Any) -> None:
    source, out = Three(), output(tmp_path / "out")
    assert run(segmenter, source, [TEXT], out.folder, options=options()).frames == 3
    assert source.closed
    assert out.result["settings"]["video"] == "three"
    out.check(frames=3, expressions=1, size=(48, 80))


@pytest.mark.parametrize(
    ("chosen", "files"),
    [
        (["masks"], {"masks"}),
        (["overlay"], {"overlay.mp4"}),
        (["json"], {"result.json"}),
        ([], set()),
    ],
)
def test_what_is_written_can_be_chosen(
    segmenter: Segmenter, video: Path, tmp_path: Path, chosen: list[str], files: set[str]
) -> None:
    out = tmp_path / "out"
    assert run(segmenter, video, [TEXT], out, sinks=chosen, options=options()).frames == 6
    assert {path.name for path in out.glob("*")} == files


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["mask"], "no sink 'mask'; choose from masks, palette, overlay, json, "),
        (["json"] * 2, "given twice"),
    ],
)
def test_sinks_that_cannot_be(
    segmenter: Segmenter, video: Path, tmp_path: Path, chosen: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(segmenter, video, [TEXT], tmp_path / "out", sinks=chosen, options=options())
    assert not (tmp_path / "out").exists()


def test_images_are_kept_only_for_sinks_that_need_them(
    segmenter: Segmenter, video: Path, tmp_path: Path
) -> None:
    kept: list[bool] = []

    class Ask(Log):
        def write(self, result: FrameResult) -> None:
            kept.append(result.frame.has_image)

    for more in (["masks", "json"], ["overlay"]):
        run(segmenter, video, [TEXT], tmp_path / "out", sinks=[Ask(), *more], options=options())
    assert kept == [False] * 6 + [True] * 6


def test_one_store_holds_all_that_waits(
    segmenter: Segmenter, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Any
) -> None:
    stores: list[int] = []
    made = spill_store.SpillStore.__init__

    def count(self: spill_store.SpillStore, budget: int) -> None:
        stores.append(budget)
        made(self, budget)

    monkeypatch.setattr(spill_store.SpillStore, "__init__", count)
    out = output(tmp_path / "out")
    small = options(stream={"mask_budget": 0})
    assert run(segmenter, video, [TEXT], out.folder, options=small).frames == 6
    out.check(frames=6, expressions=1, size=(48, 80))
    assert stores == [0]


# --- All of a frame, or nothing -------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write", "commit"])
def test_a_sink_that_fails_withdraws_the_frame_from_all(
    segmenter: Segmenter, video: Path, tmp_path: Path, output: Any, step: str
) -> None:
    """In the middle: the frames before it are complete, in every output, and the error says so."""
    out, first, last = output(tmp_path / "out"), Log(), Log(f"{step} 3")
    chosen = [first, "masks", "overlay", last, "json"]
    with pytest.raises(InputError, match=rf"{step} 3 cannot be done; 3 frames are complete in "):
        run(segmenter, video, [TEXT], out.folder, sinks=chosen, options=options())
    assert first.shown == last.shown == [0, 1, 2]
    assert first.calls[-3:] == ["rollback", "finish", "abort"]
    masks = sorted(path.name for path in (out.folder / "masks" / "0").iterdir())
    assert masks == ["00000.png", "00001.png", "00002.png"]
    assert [frame["index"] for frame in out.result["frames"]] == [0, 1, 2]
    assert out.result["stopped"] == f"error: {step} 3 cannot be done"


@pytest.mark.parametrize("step", ["open 80x48 ['the ball']", "write 0", "commit 0"])
def test_a_sink_that_fails_at_first_leaves_an_earlier_run(
    segmenter: Segmenter, video: Path, tmp_path: Path, step: str
) -> None:
    out = tmp_path / "out"
    run(segmenter, video, ["the dog", TEXT], out, options=options())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    chosen = ["masks", "overlay", "json", Log(step)]
    with pytest.raises(InputError, match=r"cannot be done$"):
        run(segmenter, video, [TEXT], out, sinks=chosen, options=options())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_source_that_fails_leaves_nothing(segmenter: Segmenter, tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(VideoError, match="there is no file"):
        run(segmenter, "nothing.mp4", [TEXT], tmp_path / "out", sinks=[log], options=options())
    assert log.calls == []
    assert not (tmp_path / "out").exists()
