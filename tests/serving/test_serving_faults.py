"""Failures of the server, clients that leave, and requests that want too much.

The application runs in this process, without Ray: so a test can break what is behind it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("python_multipart")
pytest.importorskip("httpcore")
from served import FRAMES, PATIENCE, TEXTS
from starlette.requests import Request
from starlette.testclient import TestClient

from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.segmenter_options import SegmenterOptions
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.serving import app as serving_app
from rvos_deploy.serving import segmentation
from rvos_deploy.serving.app import ServerOptions, make_app
from rvos_deploy.serving.fields import VideoFields
from rvos_deploy.serving.limits import Deadline, Limits, RequestError
from rvos_deploy.serving.lines import Lines
from rvos_deploy.serving.uploads import receive
from rvos_deploy.stream_settings import StreamSettings

STREAMS = 2
LIVE = "ws://127.0.0.1/v1/live"


class App:
    """An application in this process, and what it reported to the operator."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.reports: list[str] = []
        self.folder = folder
        options = ServerOptions(
            SegmenterOptions("tiny", StreamSettings(), "onnxruntime", threads=1),
            Limits(streams=STREAMS, **({"idle_seconds": 2.0} | limits)),
            allow_private_urls=True,
            folder=str(folder),
        )

        async def exchange(replica: str, text: str) -> list[str]:
            return [text]

        self.app = make_app(options, "one", exchange, self.reports.append)

    @property
    def served(self) -> segmentation.Served:
        return self.app._app.routes[3].endpoint.__self__._served  # type: ignore[attr-defined]

    @contextmanager
    def client(self) -> Iterator[TestClient]:
        with TestClient(self.app, "http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client

    def wait_until_free(self, client: TestClient) -> None:
        deadline = time.monotonic() + PATIENCE
        while client.get("/readyz").json()["streams"]["open"]:
            assert time.monotonic() < deadline, "a stream is still held"
            time.sleep(0.05)
        assert not list(self.folder.iterdir())


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., App]:
    def build(**limits: Any) -> App:
        folder = tmp_path / "requests"
        folder.mkdir()
        return App(folder, **limits)

    return build


def post(client: TestClient, clip: Path, **fields: object) -> Any:
    data = {"expression": list(TEXTS), **fields}
    return client.post("/v1/segment", data=data, files={"video": ("a.mp4", clip.read_bytes())})


def lines_of(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def outcomes(client: TestClient) -> set[str]:
    text = client.get("/metrics").text
    return {line.partition('outcome="')[2].partition('"')[0] for line in text.splitlines()} - {""}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), MemoryError()])
def test_a_failure_before_the_first_line(
    make: Callable[..., App], clip: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    one = make()

    def broken(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(segmentation, "run", broken)
    with one.client() as client:
        for _ in range(STREAMS + 1):
            answer = post(client, clip)
            assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        one.wait_until_free(client)
        assert outcomes(client) == {"internal"}
    assert len(one.reports) == STREAMS + 1
    assert all(type(failure).__name__ in report for report in one.reports)


def fail_at(monkeypatch: pytest.MonkeyPatch, frame: int) -> None:
    push = Stream.push

    def broken(self: Stream, image: Any) -> Any:
        if image.index == frame:
            raise MemoryError
        return push(self, image)

    monkeypatch.setattr(Stream, "push", broken)


def test_a_failure_behind_some_lines(
    make: Callable[..., App], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    fail_at(monkeypatch, 3)
    with one.client() as client:
        lines = lines_of(post(client, clip))
        assert [line.get("code") for line in lines[:-1]] == [None] * (len(lines) - 1)
        assert lines[-1]["code"] == "internal"
        assert 1 <= len(lines) - 1 <= 1 + 3  # a frame may be lost while it is written
        one.wait_until_free(client)
    assert "MemoryError" in one.reports[0]


def test_a_failure_of_a_live_stream(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    fail_at(monkeypatch, 1)
    with one.client() as client:
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"type": "start", "expressions": ["a"], "rgb": [32, 32]})
            assert socket.receive_json()["schema"] == "rvos-deploy/stream/1"
            socket.send_bytes(bytes(32 * 32 * 3))
            assert socket.receive_json()["index"] == 0
            socket.send_bytes(bytes(32 * 32 * 3))
            assert socket.receive_json()["code"] == "internal"
        one.wait_until_free(client)
    assert "MemoryError" in one.reports[0]


def test_a_folder_that_cannot_be_made(
    make: Callable[..., App], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()

    def full(**options: object) -> str:
        raise OSError(28, "No space left on device")

    with one.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(serving_app.tempfile, "mkdtemp", full)
            for _ in range(STREAMS + 1):
                assert post(client, clip).json()["code"] == "internal"
        assert len(lines_of(post(client, clip))) == FRAMES + 2


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"size": "2048x2048"}, "input_too_large"),
        ({"short_side": "2048"}, "input_too_large"),
        ({"memory": "257"}, "too_much_memory"),
        ({"memory": "200", "anchors": "57"}, "too_much_memory"),
        ({"lookahead": "257"}, "too_much_memory"),
        ({"size": "9" * 5000 + "x64"}, "wrong_field"),
        ({"start": "9" * 5000 + "f"}, "wrong_field"),
        ({"start": "9" * 5000 + ":00:00"}, "wrong_field"),
        ({"video_stream": "99"}, "wrong_field"),
    ],
)
def test_requests_that_want_too_much(
    make: Callable[..., App], clip: Path, fields: dict[str, str], code: str
) -> None:
    one = make()
    with one.client() as client:
        answer = post(client, clip, **fields)
        assert answer.json()["code"] == code
        assert answer.status_code in (413, 422)
        message = answer.json()["message"]
        assert str(one.folder) not in message
        assert len(message) < 300
        one.wait_until_free(client)
    assert not one.reports


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"expressions": ' + b"[" * 100_000])
def test_json_without_end(make: Callable[..., App], body: bytes) -> None:
    one = make()
    with one.client() as client:
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/segment", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "wrong_field")
        with client.websocket_connect(LIVE) as socket:
            socket.send_text('{"type": "start", "x": ' + "[" * 100_000)
            assert socket.receive_json()["code"] == "wrong_field"
        with client.websocket_connect(LIVE) as socket:
            socket.send_bytes(b"no text")
            assert socket.receive_json()["code"] == "wrong_message"


def test_a_large_text_field_is_refused(make: Callable[..., App], clip: Path) -> None:
    with make().client() as client:
        answer = post(client, clip, expression="x" * 100_000)
        assert (answer.status_code, answer.json()["code"]) == (422, "wrong_form")


def test_what_is_no_video_is_told_without_a_path(make: Callable[..., App], tmp_path: Path) -> None:
    one, file = make(), tmp_path / "a.mp4"
    file.write_bytes(b"no video at all" * 100)
    with one.client() as client:
        answer = post(client, file)
    assert answer.json()["code"] == "video"
    assert "/" not in answer.json()["message"].split("it is")[0]


def test_the_servers_size_holds_where_a_request_names_none(
    make: Callable[..., App], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, found = make(), []
    check = segmentation.check_input
    monkeypatch.setattr(
        segmentation, "check_input", lambda size, limits: found.append(size) or check(size, limits)
    )
    with one.client() as client:
        object.__setattr__(one.served, "defaults", StreamSettings(size=(64, 96)))
        assert len(lines_of(post(client, clip))) == FRAMES + 2
        assert len(lines_of(post(client, clip, size="96x128"))) == FRAMES + 2
    assert found == [(64, 96), (96, 128)]


def test_offline_has_a_limit_of_its_own(make: Callable[..., App], clip: Path) -> None:
    with make(offline_frames=FRAMES - 1).client() as client:
        lines = lines_of(post(client, clip, mode="offline"))
        assert [line.get("code") for line in lines] == [None, "too_many_frames"]
        assert "more than 7 frames in mode offline" in lines[1]["message"]
        assert len(lines_of(post(client, clip, mode="offline", max_frames="7"))) == 7 + 2


def test_the_time_of_a_request_covers_frames_that_wait(
    make: Callable[..., App], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "long.mp4"
    sample_video(clip, seed=0, frames=24)
    one, pushed = make(seconds=1.0), []
    push = Stream.push

    def slow(self: Stream, image: Any) -> Any:
        pushed.append(image.index)
        time.sleep(0.3)
        return push(self, image)

    monkeypatch.setattr(Stream, "push", slow)
    with one.client() as client:
        lines = lines_of(post(client, clip, mode="offline"))
        assert lines[-1]["code"] == "too_long"
        one.wait_until_free(client)
    assert len(pushed) <= 4


def test_a_client_that_leaves_ends_a_run_that_sends_nothing_yet(
    make: Callable[..., App], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "long.mp4"
    sample_video(clip, seed=0, frames=24)
    one, push, leave = make(), Stream.push, threading.Event()

    def waits(self: Stream, image: Any) -> Any:
        if image.index == 3:
            assert leave.wait(PATIENCE)
        return push(self, image)

    monkeypatch.setattr(Stream, "push", waits)
    fields = VideoFields(expressions=list(TEXTS), mode="offline")
    asked = segmentation.VideoRequest(fields, tmp_path, clip, Deadline(PATIENCE))
    pushed = []
    monkeypatch.setattr(Stream, "flush", lambda self: pushed.append(self) or iter(()))

    async def run() -> str:
        lines = Lines(PATIENCE)
        work = asyncio.to_thread(segmentation.segment_file, one.served, asked, lines)
        task = asyncio.create_task(work)
        assert await lines.next()
        lines.close()
        leave.set()
        return await task

    assert asyncio.run(run()) == "client_gone"
    assert not pushed, "all frames were read"


def test_a_slow_end_of_a_live_stream_is_waited_for(
    make: Callable[..., App], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(idle_seconds=0.5)
    flush = Stream.flush

    def slow(self: Stream) -> Any:
        time.sleep(1.5)
        yield from flush(self)

    monkeypatch.setattr(Stream, "flush", slow)
    with one.client() as client, client.websocket_connect(LIVE) as socket:
        start = {"type": "start", "expressions": ["a"], "rgb": [32, 32], "lookahead": 3}
        socket.send_json(start)
        socket.receive_json()
        socket.send_bytes(bytes(32 * 32 * 3))
        socket.send_json({"type": "end"})
        assert socket.receive_json()["index"] == 0
        assert socket.receive_json()["frames"] == 1


class Dripping:
    """A server that sends a byte now and then, and never ends."""

    def __init__(self) -> None:
        import socket

        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/a.mp4"
        self.ended = threading.Event()
        self.connected = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: Any) -> None:
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            self.connected.release()
            while not self.ended.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return


@pytest.fixture
def dripping() -> Iterator[Dripping]:
    one = Dripping()
    yield one
    one.ended.set()
    one.listening.close()


def test_the_time_of_a_request_covers_its_download(
    make: Callable[..., App], dripping: Dripping
) -> None:
    one = make(seconds=1.0)
    with one.client() as client:
        body = {"url": dripping.url, "expressions": ["a"]}
        answer = client.post("/v1/segment", json=body)
        assert (answer.status_code, answer.json()["code"]) == (408, "too_long")
        one.wait_until_free(client)


def test_the_time_of_a_request_covers_its_upload(tmp_path: Path) -> None:
    parts = 0

    async def receive_part() -> dict[str, Any]:
        nonlocal parts
        parts += 1
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b" ", "more_body": True}

    headers = [(b"content-type", b"application/json")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive_part)
    with pytest.raises(RequestError, match="took more than") as refused:
        asyncio.run(receive(request, tmp_path, Limits(), Deadline(0.5)))
    assert refused.value.code == "too_long"
    assert 1 < parts <= 11


def test_a_deadline_is_over_once() -> None:
    early, late = Deadline(1000.0), Deadline(0.0)
    early.check()
    assert 999 < early.left <= 1000
    assert late.left == 0
    with pytest.raises(RequestError, match="took more than 0 s"):
        late.check()


def test_a_replica_that_starts_again_fails_loudly(tmp_path: Path) -> None:
    options = ServerOptions(
        SegmenterOptions("tiny", StreamSettings(), "tensorrt"), folder=str(tmp_path)
    )

    async def exchange(replica: str, text: str) -> list[str]:
        return [text]

    make_app(options, "one", exchange, print)  # it says why in /readyz
    with pytest.raises(BackendError):
        make_app(options, "one", exchange, print, again=True)
