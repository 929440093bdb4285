"""What a source is taken for, and sources that hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rvos_deploy.errors import InputError, VideoError
from rvos_deploy.iterator_thread import any_stuck
from rvos_deploy.video import SourceOptions, open_video
from rvos_deploy.video.sources.address import kind_of
from rvos_deploy.video.sources.base import NETWORK_TIMEOUT
from rvos_deploy.video.sources.registry import SOURCES, source_type

URLS = [
    "http://host/a.mp4",
    "http:host/a.mp4",
    "http:/host/a.mp4",
    "HTTPS:host/a.mp4",
    "rtsp:host/stream",
    "rtmp:host/app/stream",
    "tcp:host:9000",
    "udp:@239.0.0.1:1234",
    "srt:host:9000",
    "tls:host:443",
    "async:http:host/a.mp4",
    "cache:http:host/a.mp4",
    "crypto+http:host/a.mp4",
    "concat:http:host/a.ts|http:host/b.ts",
    "subfile,,start,0,end,100,,:http:host/a.mp4",
    "unheard-of://host/a",
]
FILES = [
    "C:\\videos\\a.mp4",
    "c:/videos/a.mp4",
    "12:30.mp4",
    "a b:c.mp4",
    "my_http:x.mp4",
    "./http:x.mp4",
    "file:a.mp4",
    "file:///tmp/a.mp4",
    "nothing.mp4",
    "a\0b",
]


@pytest.mark.parametrize("source", URLS)
def test_whatever_ffmpeg_takes_for_the_network_is_a_url_with_a_timeout(source: str) -> None:
    assert kind_of(source) == "url"
    assert source_type(source).timeouts("auto").network == NETWORK_TIMEOUT == 30


@pytest.mark.parametrize("source", FILES)
def test_other_names_with_a_colon_are_files(source: str) -> None:
    assert kind_of(source) == "file"
    assert source_type(source) is SOURCES["file"]
    assert source_type(source).timeouts("auto") == (None, 120)


def test_pipes_and_devices_may_be_silent_for_ever(fifo: Path) -> None:
    for source in ("-", "pipe:0", "fd:", fifo):
        assert kind_of(str(source)) == "pipe"
    assert kind_of("/dev/null") == kind_of(":0", "x11grab") == "device"
    for name in ("-", "/dev/null"):
        assert source_type(name).timeouts("auto") == (None, None)


@pytest.mark.parametrize("name", ["http:host.mp4", "rtsp:x", "subfile,,:x", "12:30.mp4", "C:a.mp4"])
def test_a_file_with_such_a_name_is_read(
    make_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    make_video(tmp_path / "a.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with open_video(name) as reader:
        assert len(list(reader)) == 6
        assert reader.damage is None


def test_a_missing_file_with_a_colon_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"there is no file 12:30\.mp4"):
        open_video("12:30.mp4")


SPELLINGS = ["http://{}/a", "http:{}/a", "HTTP:{}/a", "async:http:{}/a", "tcp:{}", "rtsp:{}/a"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_server_that_accepts_and_is_silent(stalled: Callable, spelling: str) -> None:
    server = stalled(b"")
    with pytest.raises(VideoError, match="cannot be opened: ") as caught:
        open_video(spelling.format(server.host), timeout=0.5)
    assert len(str(caught.value).splitlines()) == 1
    assert "check the address and the network" in str(caught.value)


def test_a_server_that_sends_a_header_and_is_silent(
    stalled: Callable, http_answer: Callable
) -> None:
    server = stalled(http_answer(b"x" * 1000, 0))
    with pytest.raises(VideoError, match="no data came in time"):
        open_video(f"http:{server.host}/a.mp4", timeout=0.5)


def test_a_server_that_sends_half_a_video_gives_half_its_frames(
    make_video: Callable[..., Path], stalled: Callable, http_answer: Callable, tmp_path: Path
) -> None:
    whole = make_video(tmp_path / "a.mkv", frames=200).read_bytes()
    server = stalled(http_answer(whole, 0.5))
    once = SourceOptions(reconnect=0)
    with open_video(f"http:{server.host}/a.mkv", timeout=0.5, options=once) as reader:
        frames = len(list(reader))
        assert 10 < frames < 200
        assert reader.damage
        assert "no data came in time" in reader.damage


def test_a_fifo_without_a_writer_hangs_no_longer_than_asked(fifo: Path) -> None:
    with pytest.raises(VideoError, match=r"fifo gave no frame for 0\.3 s; check the disk"):
        open_video(fifo, timeout=0.3)
    os.close(os.open(fifo, os.O_WRONLY))  # lets the thread go


def test_a_source_that_hangs_in_the_middle_is_damaged_there(
    make_video: Callable[..., Path], fifo: Path, tmp_path: Path
) -> None:
    content = make_video(tmp_path / "a.mkv", frames=200).read_bytes()
    done = threading.Event()

    def feed() -> None:
        with fifo.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            done.wait(60)

    threading.Thread(target=feed, daemon=True).start()
    with open_video(fifo, timeout=1) as reader:
        frames = len(list(reader))
        assert frames > 10
        assert reader.damage == f"reading hangs: after {frames} frames no frame came for 1 s"
        assert list(reader) == []
    done.set()


@pytest.mark.parametrize("timeout", [0, -1, "never"])
def test_a_timeout_that_is_none(timeout: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'timeout must be seconds above 0, None or "auto"'):
        open_video(tmp_path, timeout=timeout)


WAITING = """
import sys
from rvos_deploy.video import open_video
try:
    print("ready", flush=True)
    open_video(sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("source", ["fifo", "-", "http"])
def test_ctrl_c_reaches_a_program_that_waits_for_a_source(
    fifo: Path, stalled: Callable, source: str
) -> None:
    """In the Python API it is Python's own, and the interpreter ends as it should."""
    server = stalled(b"")
    name = {"fifo": str(fifo), "http": f"http:{server.host}/a"}.get(source, source)
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        assert child.stdout
        assert child.stderr
        assert child.stdout.readline() == "ready\n"
        # By now it may not wait yet, which must make no difference.
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0
        assert child.stdout.read() == "interrupted\n"
        assert child.stderr.read() == ""


def test_a_reader_that_is_dropped_or_closed_leaves_no_thread(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.mp4")
    reader = open_video(path)
    thread = reader._thread._thread._thread
    del reader
    thread.join(20)
    assert not thread.is_alive()
    with open_video(path) as reader:
        next(reader)
    assert list(reader) == []
    reader._thread._thread._thread.join(20)
    assert not any_stuck()
