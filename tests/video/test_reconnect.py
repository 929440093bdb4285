"""Network sources that stall, drop and come back: HTTP by a server of ours, RTSP by GStreamer's."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from live_server import Connection
from PIL import Image
from rtsp_server import Camera
from video_clips import encode, moving_images

from rvos_deploy.errors import VideoError
from rvos_deploy.video import Frame, SourceOptions, VideoReader, open_video
from rvos_deploy.video.sources import reconnect, timeline
from rvos_deploy.video.sources.selection import Selection
from rvos_deploy.video.sources.timeline import Timeline, Timestamp

FRAMES = 60


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 60 frames at 25 fps as a transport stream, an MP4 and a Matroska file."""
    folder = tmp_path_factory.mktemp("clips")
    encode(folder / "a.ts", moving_images(FRAMES))
    encode(folder / "a.mkv", moving_images(FRAMES))
    encode(folder / "a.mp4", moving_images(FRAMES), movflags="+faststart")
    return folder


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "FIRST_PAUSE", 0.1)


def start(url: str, *, seconds: float = 20, timeout: float = 0.6, **options: object) -> VideoReader:
    reading = SourceOptions(reconnect=seconds, **options)  # type: ignore[arg-type]
    return open_video(url, timeout=timeout, on_damage="skip", options=reading)


def gaps(frames: list[Frame]) -> list[float]:
    """Seconds between frames that are not neighbours of one connection."""
    steps = np.diff([frame.pts for frame in frames])
    assert (steps > 0).all()
    return [float(step) for step in steps if step > 0.1]


@pytest.mark.parametrize("then", ["drop", "stall"])
def test_a_live_stream_goes_on_and_times_say_how_long_it_was_away(
    live_server: Callable, clips: Path, then: str
) -> None:
    stream = (clips / "a.ts").read_bytes()
    broken = Connection(stream[: len(stream) // 2], then)
    server = live_server(broken, Connection(refuse=True), Connection(stream))
    with start(server.url) as reader:
        frames = list(reader)
        assert reader.damage is None
        assert reader.live is not None
        assert reader.live.reconnects == 1
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert FRAMES + 10 < len(frames) < 2 * FRAMES
    (gap,) = gaps(frames)
    # At least the pauses before both attempts, and for a stall also the time-out, but for the four
    # frames (0.16 s) that the decoder gives late, after it knows of the loss.
    assert gap >= 3 * reconnect.FIRST_PAUSE + (0.6 if then == "stall" else 0) - 0.2
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}


def test_pauses_double(live_server: Callable, clips: Path) -> None:
    stream = (clips / "a.ts").read_bytes()
    away = [Connection(refuse=True)] * 3
    server = live_server(Connection(stream, "drop"), *away, Connection(stream))
    with start(server.url) as reader:
        assert len(list(reader)) >= FRAMES
    pauses = np.diff(server.requests)
    for number, pause in enumerate(pauses):
        assert pause >= reconnect.FIRST_PAUSE * 2**number


def test_a_server_that_stays_away_ends_the_video(live_server: Callable, clips: Path) -> None:
    stream = (clips / "a.ts").read_bytes()
    server = live_server(Connection(stream[: len(stream) // 2], "drop"), Connection(refuse=True))
    with start(server.url, seconds=1) as reader:
        frames = len(list(reader))
        assert frames > 5
        assert reader.damage is not None
        assert reader.damage.startswith(f"the connection was lost after {frames} frames (reading ")
        assert "attempts to connect again: " in reader.damage
        assert "\n" not in reader.damage


def test_no_attempt_where_none_is_wanted(live_server: Callable, clips: Path) -> None:
    stream = (clips / "a.ts").read_bytes()
    server = live_server(Connection(stream[: len(stream) // 2], "drop"))
    with start(server.url, seconds=0) as reader:
        assert len(list(reader)) > 5
        assert "reading stopped after" in str(reader.damage)
    assert len(server.requests) == 1


def test_an_answer_that_ends_is_the_end(live_server: Callable, clips: Path) -> None:
    server = live_server(Connection((clips / "a.ts").read_bytes()))
    with start(server.url) as reader:
        assert len(list(reader)) == FRAMES
        assert reader.damage is None
    assert len(server.requests) == 1


def test_the_end_of_a_camera_is_no_damage_where_no_attempt_is_wanted(
    live_server: Callable,
) -> None:
    kind = "multipart/x-mixed-replace; boundary=frame"
    server = live_server(Connection(jpegs(5), content_type=kind))
    with start(server.url, seconds=0) as reader:
        assert len(list(reader)) == 5
        assert reader.damage is None


def test_a_wrong_address_is_told_at_once(live_server: Callable) -> None:
    server = live_server(Connection(refuse=True))
    with pytest.raises(VideoError, match="cannot be opened"):
        start(server.url, seconds=600)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("then", ["drop", "stall"])
def test_a_file_goes_on_with_the_frame_that_is_missing(
    live_server: Callable, clips: Path, name: str, then: str
) -> None:
    """Every frame once, none damaged: the pixels are those of the file on disk."""
    content = (clips / name).read_bytes()
    cut = [
        Connection(content[: len(content) * part // 5], then, length=len(content))
        for part in (2, 4)
    ]
    server = live_server(*cut, Connection(content, length=len(content)))
    with open_video(clips / name) as reader:
        whole = list(reader)
    with start(server.url) as reader:
        frames = list(reader)
        assert reader.damage is None
    assert len(server.requests) == 3
    assert [(f.index, f.pts) for f in frames] == [(f.index, f.pts) for f in whole]
    for frame, same in zip(frames, whole, strict=True):
        assert np.array_equal(frame.image, same.image)


def test_a_file_that_is_cut_short_on_the_server_ends_soon(
    live_server: Callable, clips: Path
) -> None:
    content = (clips / "a.mp4").read_bytes()
    half = content[: len(content) // 2]
    server = live_server(Connection(half, length=len(half)))
    with start(server.url, seconds=600) as reader:
        frames = len(list(reader))
        assert 5 < frames < FRAMES
        assert f"lost after {frames} frames" in str(reader.damage)
    assert len(server.requests) <= 6


def jpegs(count: int) -> bytes:
    parts = []
    for image in moving_images(count):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        data = file.getvalue()
        parts.append(
            b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
            % (len(data), data)
        )
    return b"".join(parts)


def test_a_camera_of_jpegs_has_the_times_of_arrival(live_server: Callable) -> None:
    """Such a stream has no clock; FFmpeg would say 25 fps, whatever the camera does."""
    kind = "multipart/x-mixed-replace; boundary=frame"
    slow = Connection(jpegs(12), "end", pause=0.1, parts=12, content_type=kind)
    server = live_server(slow, slow)
    reading = SourceOptions(reconnect=20)
    with open_video(server.url, max_frames=16, timeout=5, options=reading) as reader:
        assert reader.info.average_fps is None
        frames = list(reader)
        assert reader.live is not None
        assert reader.live.reconnects == 1  # a camera does not end
    seconds = frames[9].pts - frames[1].pts
    assert seconds >= 0.7  # eight pauses of 0.1 s; FFmpeg's rate would give 0.32
    assert (np.diff([frame.pts for frame in frames]) > 0).all()


def test_a_stream_that_comes_back_with_another_size_keeps_its_size(
    live_server: Callable, clips: Path, tmp_path: Path
) -> None:
    stream = (clips / "a.ts").read_bytes()
    larger = encode(tmp_path / "b.ts", moving_images(5, 96, 96)).read_bytes()
    server = live_server(Connection(stream, "drop"), Connection(larger))
    with start(server.url) as reader:
        frames = list(reader)
    assert len(frames) > FRAMES
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}


def test_latest_drops_what_a_stalled_server_sends_at_once(
    live_server: Callable, clips: Path
) -> None:
    """A burst of old frames: the reader gets the newest one, with its own index and time."""
    stream = (clips / "a.ts").read_bytes()
    server = live_server(Connection(stream))
    with open_video(clips / "a.ts") as reader:
        whole = list(reader)
    with start(server.url, policy="latest") as reader:
        wait_until_read(reader)
        frames = list(reader)
        assert reader.live is not None
        assert reader.live.dropped == FRAMES - len(frames)
    last = frames[-1]
    assert (last.index, last.pts, last.dropped) == (FRAMES - 1, whole[-1].pts, FRAMES - len(frames))
    for order, frame in enumerate(frames):
        assert frame.index == order + frame.dropped
        assert np.array_equal(frame.image, whole[frame.index].image)


def wait_until_read(reader: VideoReader) -> None:
    assert reader._latest is not None
    reader._latest._thread.join(30)
    assert not reader._latest._thread.is_alive()


def test_closing_ends_the_wait_for_a_server(live_server: Callable, clips: Path) -> None:
    stream = (clips / "a.ts").read_bytes()
    server = live_server(Connection(stream, "drop"), Connection(refuse=True))
    reader = start(server.url, seconds=600)
    thread = reader._thread._thread._thread
    closer = threading.Timer(1.5, reader.close)
    closer.start()
    assert len(list(reader)) >= FRAMES - 2
    closer.join()
    thread.join(20)
    assert not thread.is_alive()


# --- The clock after a gap ------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timeline.time, "monotonic", lambda: now[0])
    return now


def test_a_clock_that_has_gone_on_is_kept(clock: list[float]) -> None:
    line = Timeline(Selection().selector())
    for index in range(10):
        clock[0] = 5 + index
        assert line.place(100.0 + index) == Timestamp(index, 100.0 + index)
    clock[0] = 25.0
    line.resume()
    assert line.place(119.5) == Timestamp(10, 119.5)  # half a second waited in a buffer
    assert line.place(120.5) == Timestamp(11, 120.5)


@pytest.mark.parametrize("anew", [0.0, 50.0, 109.0, 500.0])
def test_a_clock_that_began_anew_continues_after_the_gap(clock: list[float], anew: float) -> None:
    line = Timeline(Selection().selector())
    for index in range(10):
        clock[0] = 5 + index
        line.place(100.0 + index)
    clock[0] = 25.0  # eleven seconds after the last frame
    line.resume()
    assert line.place(anew) == Timestamp(10, 120.0)
    clock[0] = 26.0
    assert line.place(anew + 1) == Timestamp(11, 121.0)


def test_delays_of_connections_do_not_add_up(clock: list[float]) -> None:
    """FFmpeg read ahead for a second in each connection, then gave those frames at once."""
    line, index = Timeline(Selection().selector()), 0
    for connection in range(5):
        begin = 10.0 * connection
        clock[0] = begin
        if connection:
            line.resume()
        for number in range(75):
            clock[0] = begin + max(1.0, number / 25)
            found = line.place(number / 25)
            assert found is not None
            assert found.index == index
            assert found.pts == pytest.approx(begin + number / 25, abs=0.05)
            index += 1


def test_a_frame_that_came_late_does_not_shorten_the_gap(clock: list[float]) -> None:
    """The decoder gave its last frame when the connection was lost, five seconds later."""
    line = Timeline(Selection().selector())
    line.place(0.0)
    clock[0] = 6.0
    line.place(1.0)
    clock[0] = 7.0
    line.resume()
    assert line.place(0.0) == Timestamp(2, 7.0)


# --- A real RTSP server ---------------------------------------------------------------------------


def test_an_rtsp_camera_that_stalls_dies_and_comes_back(rtsp_camera: Camera) -> None:
    reader = start(rtsp_camera.url, seconds=30, timeout=1)
    with reader:
        assert "secret" not in reader.info.name
        begin, frames = time.monotonic(), [next(reader)]
        while len(frames) < 30:
            frames.append(next(reader))
        rtsp_camera.stall()
        threading.Timer(2.5, rtsp_camera.go_on).start()
        while reader.live is not None and reader.live.reconnects == 0:
            frames.append(next(reader))
        for _ in range(20):
            frames.append(next(reader))
        rtsp_camera.kill()
        threading.Timer(1.0, rtsp_camera.start).start()
        while reader.live is not None and reader.live.reconnects == 1:
            frames.append(next(reader))
        for _ in range(20):
            frames.append(next(reader))
        elapsed = time.monotonic() - begin
        assert reader.damage is None
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert len(gaps(frames)) >= 2
    # Times tell the truth over both gaps: 3.5 s away, and no more than there was, but for the
    # frames that had come before the first one was read.
    assert 3.5 + 60 / 25 < frames[-1].pts - frames[0].pts < elapsed + 2
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}


def test_an_rtsp_camera_with_a_slow_reader(rtsp_camera: Camera) -> None:
    """Five frames a second of 25: the policy keeps up, and says what it left out."""
    with start(rtsp_camera.url, timeout=5, policy="latest") as reader:
        frames = []
        for _ in range(8):
            frames.append(next(reader))
            time.sleep(0.2)
        assert reader.live is not None
        assert reader.live.behind_seconds < 0.5
    for order, frame in enumerate(frames):
        assert frame.index == order + frame.dropped
    assert frames[-1].dropped > 15
    assert frames[-1].pts - frames[0].pts > 1.0
