"""Live sources: the policy drops what is stale, counts it, and keeps index and time of the rest."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from queue import Queue
from typing import ClassVar

import numpy as np
import pytest

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.video import Frame, SourceOptions, VideoInfo, open_video
from rvos_deploy.video import live as live_module
from rvos_deploy.video.live import Lag, LatestFrames

LATEST = SourceOptions(policy="latest")


@pytest.fixture(autouse=True)
def _every_camera_ends() -> Iterator[None]:
    """Nobody can end a thread that waits for a camera but the camera itself."""
    yield
    for camera in Camera.made:
        camera.end()
        camera.closed.set()
    Camera.made.clear()


class Camera:
    """A source of one's own: gives the frames that a test puts into it; None ends it."""

    info = VideoInfo(8, 4, 25.0, None, "camera", Fraction(1, 1000))
    made: ClassVar[list[Camera]] = []

    def __init__(self) -> None:
        self.made.append(self)
        self._queue: Queue[Frame | Exception | None] = Queue()
        self.read = threading.Semaphore(0)
        self.closed = threading.Event()

    def see(self, *indices: int) -> None:
        """Give frames at 25 fps, and wait until they are read."""
        for index in indices:
            self._queue.put(frame_at(index))
            # The source is asked for the next frame when this one is in the reader's hands.
            assert self.read.acquire(timeout=10)

    def end(self, error: Exception | None = None) -> None:
        self._queue.put(error)

    def frames(self) -> Iterator[Frame]:
        while True:
            item = self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item
            self.read.release()

    def close(self) -> None:
        self.closed.set()


def frame_at(index: int) -> Frame:
    return Frame(index, index / 25, np.full((4, 8, 3), index % 256, np.uint8), 0.04)


def check(frame: Frame, index: int, dropped: int) -> None:
    """The frame is the source's own: its pixels, index and time, and how many are missing."""
    assert (frame.index, frame.dropped) == (index, dropped)
    assert frame.pts == index / 25
    assert (frame.image == index % 256).all()


def test_latest_reads_only_the_newest_frame_and_counts_the_others() -> None:
    camera = Camera()
    with open_video(camera, options=LATEST) as reader:
        camera.see(0)
        check(next(reader), 0, 0)
        camera.see(*range(1, 8))  # the reader is busy meanwhile
        check(next(reader), 7, 6)
        camera.see(8)
        check(next(reader), 8, 6)
        camera.see(9, 10)
        camera.end()
        check(next(reader), 10, 7)
        assert list(reader) == []
        assert reader.live is not None
        assert (reader.live.policy, reader.live.dropped) == ("latest", 7)
    assert camera.closed.wait(10)


def test_every_drops_nothing() -> None:
    camera = Camera()
    with open_video(camera) as reader:
        for index in range(5):
            camera._queue.put(frame_at(index))
        camera.end()
        for index, frame in enumerate(reader):
            check(frame, index, 0)
        assert index == 4
        assert reader.live is not None
        assert (reader.live.policy, reader.live.dropped) == ("every", 0)


def test_a_latency_keeps_the_frames_of_that_time() -> None:
    """By the source's clock: frames of a burst are old although they have just come."""
    camera = Camera()
    options = SourceOptions(policy="latest", max_latency=0.1)
    with open_video(camera, options=options) as reader:
        camera.see(*range(20))
        for count, index in enumerate((17, 18, 19)):  # 19 is at 0.76 s, 17 at 0.68 s
            check(next(reader), index, 17)
            assert count + 17 == index


def test_a_frame_that_has_waited_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: now[0])
    queue: Queue[Frame] = Queue()
    latest = LatestFrames(queue.get, max_latency=1.0)
    for index in range(3):
        queue.put(frame_at(index))
    wait_until(lambda: len(latest._waiting) == 3)
    now[0] = 100.9
    check(latest.next(), 0, 0)
    now[0] = 101.1
    check(latest.next(), 2, 1)  # the newest one is never dropped
    queue.put(frame_at(3))
    wait_until(lambda: len(latest._waiting) == 1)
    now[0] = 200.0
    check(latest.next(), 3, 1)
    latest.close()


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(20_000):  # the clock may be a test's own
        if true():
            return
        threading.Event().wait(0.001)
    pytest.fail("it never came true")


def test_memory_stays_flat_when_nobody_reads() -> None:
    """A source that is faster than its reader, for thousands of frames."""
    seen = threading.Event()

    class Fast(Camera):
        def frames(self) -> Iterator[Frame]:
            for index in range(3000):
                yield frame_at(index)
            seen.set()
            self.closed.wait(10)

    with open_video(Fast(), options=LATEST) as reader:
        assert seen.wait(60)
        gc.collect()
        frames = [one for one in gc.get_objects() if type(one) is Frame]
        # Other tests may have left frames without an image.
        alive = sum(one.has_image and one.image.shape == (4, 8, 3) for one in frames)
        assert alive <= 4
        check(next(reader), 2999, 2999)


def test_a_long_latency_is_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "_MOST_BYTES", 5 * frame_at(0).image.nbytes)
    camera = Camera()
    with open_video(camera, options=SourceOptions(policy="latest", max_latency=1000)) as reader:
        camera.see(*range(50))
        check(next(reader), 45, 45)


def test_an_error_of_the_source_comes_after_the_frames_before_it() -> None:
    camera = Camera()
    with open_video(camera, options=LATEST) as reader:
        camera.see(0)
        camera.end(VideoError("the lens is covered"))
        check(next(reader), 0, 0)
        with pytest.raises(VideoError, match="the lens is covered"):
            next(reader)


def test_a_source_that_hangs_ends() -> None:
    camera = Camera()
    with open_video(camera, options=LATEST, timeout=0.3) as reader:
        camera.see(0)
        check(next(reader), 0, 0)
        assert list(reader) == []
        assert reader.damage == "reading hangs: after 1 frames no frame came for 0.3 s"


def test_another_thread_can_close_a_reader_that_waits() -> None:
    camera = Camera()
    reader = open_video(camera, options=LATEST)
    camera.see(0)
    next(reader)
    threading.Timer(0.1, reader.close).start()
    assert list(reader) == []
    camera.end()


def test_a_reader_that_is_dropped_leaves_no_thread() -> None:
    camera = Camera()
    reader = open_video(camera, options=LATEST)
    assert reader._latest is not None
    thread = reader._latest._thread
    del reader
    gc.collect()
    thread.join(20)  # although the camera is silent
    assert not thread.is_alive()
    camera.end()


def test_selection_comes_before_the_policy() -> None:
    camera = Camera()
    options = SourceOptions(policy="latest", start="2f", stride="3f")
    with open_video(camera, options=options) as reader:
        camera._queue.put(frame_at(0))
        camera._queue.put(frame_at(1))
        camera.see(2)
        check(next(reader), 2, 0)
        for index in range(3, 9):
            camera._queue.put(frame_at(index))
        camera.end()
        found = list(reader)
        assert [frame.index for frame in found][-1] == 8
        assert len(found) + found[-1].dropped == 2


def test_max_frames_counts_frames_that_are_handed_out() -> None:
    camera = Camera()
    with open_video(camera, options=LATEST, max_frames=2) as reader:
        camera.see(*range(10))
        check(next(reader), 9, 9)
        camera.see(*range(10, 20))
        check(next(reader), 19, 18)
        assert list(reader) == []  # without waiting for another frame
    camera.end()


def test_lag_is_measured_on_the_clock_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: now[0])
    lag = Lag()
    for index in range(100):  # 25 fps are read at 10 fps
        now[0] = 50 + index / 10
        lag.note(1000 + index / 25)
    assert lag.behind == pytest.approx(99 / 10 - 99 / 25)


def slow_reading(
    monkeypatch: pytest.MonkeyPatch, camera: Camera, options: SourceOptions
) -> list[str]:
    """Read 100 frames of 25 a second, ten a second; return the warnings."""
    now = [50.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: now[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_video(camera, options=options) as reader:
            for index in range(100):
                now[0] = 50 + index / 10
                camera._queue.put(frame_at(index))
                next(reader)
            camera.end()
    return [str(warning.message) for warning in caught]


def test_a_reader_that_falls_behind_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = slow_reading(monkeypatch, Camera(), SourceOptions())
    assert line.startswith("camera is read 5 s behind its clock, and every frame waits longer; ")
    assert "--policy latest" in line


def test_a_reader_that_drops_frames_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slow_reading(monkeypatch, Camera(), LATEST) == []


@pytest.mark.parametrize(("options", "message"), [
    ({"max_latency": 1.0}, "--max-latency needs --policy latest"),
    ({"policy": "latest", "max_latency": -1.0}, "--max-latency must be 0 s or more"),
    ({"policy": "newest"}, "--policy must be every or latest"),
    ({"reconnect": -1.0}, "--reconnect must be 0 s or more"),
    ({"video_stream": -1}, "--video-stream counts from 0"),
])  # fmt: skip
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SourceOptions(**options)  # type: ignore[arg-type]


def test_a_file_is_not_live() -> None:
    with pytest.raises(InputError, match=r"a\.mp4 is none; leave it out, or read fewer frames"):
        open_video("a.mp4", options=LATEST)


@pytest.mark.parametrize("wrong", [3, None, object()])
def test_an_object_that_is_no_source(wrong: object) -> None:
    with pytest.raises(InputError, match=r"an object with info and frames\(\)"):
        open_video(wrong)  # type: ignore[call-overload]


def test_what_a_source_yields_is_checked() -> None:
    class Bare(Camera):
        def frames(self) -> Iterator[Frame]:
            yield np.zeros((4, 8, 3), np.uint8)  # type: ignore[misc]

    with open_video(Bare()) as reader, pytest.raises(InputError, match="must yield Frame"):
        next(reader)
