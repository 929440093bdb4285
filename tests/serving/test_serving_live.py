"""Live frames go through a WebSocket; expressions come and go."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from served import PATIENCE, TEXTS, Server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from rvos_deploy.runtime.segmenter import load
from rvos_deploy.serving.limits import RequestError
from rvos_deploy.serving.live import Inbox, Remove
from rvos_deploy.video import read_video
from rvos_deploy.video.sinks.frame_lines import frame_line

Images = list[NDArray[np.uint8]]


@contextmanager
def opened(server: Server, **start: object) -> Iterator[ClientConnection]:
    address = f"ws{server.address.removeprefix('http')}/v1/live"
    with connect(address, open_timeout=PATIENCE, max_size=None) as socket:
        socket.send(json.dumps({"type": "start", **start}))
        yield socket


def answer(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(PATIENCE))


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def images(clip: Path) -> Images:
    return [np.asarray(frame.image) for frame in read_video(clip)]


def expected_lines(images: Images, fps: float) -> list[dict[str, Any]]:
    """A stream of this process: one expression, another from frame 2 on, the first gone at 4."""
    import rvos_deploy as rvos

    found = []
    with load("tiny", backend="onnxruntime", threads=1) as segmenter:
        stream = segmenter.stream(TEXTS[:1])
        for index, image in enumerate(images):
            if index == 2:
                stream.add_expression(TEXTS[1])
            if index == 4:
                stream.remove_expression(0)
            (result,) = stream.push(rvos.Frame(index, index / fps, image))
            texts = dict(zip(result.expressions, result.texts, strict=True))
            found.append(json.loads(frame_line(result, texts, f"{index:05d}")))
        stream.close()
    return found


@pytest.mark.parametrize("raw", [False, True])
def test_lines_equal_those_of_a_stream(server: Server, images: Images, raw: bool) -> None:
    fps = 10.0
    size = {"rgb": [images[0].shape[1], images[0].shape[0]]} if raw else {}
    found = []
    with opened(server, expressions=list(TEXTS[:1]), fps=fps, **size) as socket:
        head = answer(socket)
        assert (head["schema"], head["expressions"]) == ("rvos-deploy/stream/1", list(TEXTS[:1]))
        for index, image in enumerate(images):
            if index == 2:
                socket.send(json.dumps({"type": "add", "text": TEXTS[1]}))
                added = {"type": "added", "expression": 1, "text": TEXTS[1]}
                assert answer(socket) == added
            if index == 4:
                socket.send(json.dumps({"type": "remove", "expression": 0}))
                assert answer(socket) == {"type": "removed", "expression": 0}
            socket.send(image.tobytes() if raw else png(image))
            found.append(answer(socket))
        socket.send(json.dumps({"type": "end"}))
        summary = answer(socket)
        assert (summary["frames"], summary["dropped"]) == (len(images), 0)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    assert found == expected_lines(images, fps)


def test_the_newest_frame_wins(server: Server, images: Images) -> None:
    """A client that sends faster than the network works loses old frames, and is told."""
    sent = 200
    with opened(server, expressions=list(TEXTS), rgb=[224, 128]) as socket:
        answer(socket)

        def send() -> None:
            for number in range(sent):
                socket.send(images[number % len(images)].tobytes())
            socket.send(json.dumps({"type": "end"}))

        sender = threading.Thread(target=send)
        sender.start()
        found = []
        while (line := answer(socket))["schema"] == "rvos-deploy/frame/1":
            found.append(line)
        sender.join()
    assert line["dropped"] > 0
    assert line["frames"] == len(found)
    assert len(found) + line["dropped"] == sent
    assert found[-1]["index"] == sent - 1
    times = [one["pts"] for one in found]
    assert times == sorted(times)
    for before, after in itertools.pairwise(found):
        gap = after["index"] - before["index"] - 1
        assert after["dropped"] - before["dropped"] == gap


def test_nothing_is_followed_at_first(server: Server, images: Images) -> None:
    with opened(server, rgb=[224, 128]) as socket:
        assert answer(socket)["expressions"] == []
        socket.send(images[0].tobytes())
        assert answer(socket)["expressions"] == []


@pytest.mark.parametrize(
    ("start", "message", "code", "text"),
    [
        ({"colour": 1}, None, "wrong_field", "colour"),
        ({"expressions": ["a"] * 4}, None, "too_many_expressions", "at most 3"),
        ({"rgb": [1000, 1000]}, None, "frame_too_large", "at most 100000"),
        ({"fps": 0}, None, "wrong_field", "fps must lie in"),
        ({}, b"no picture", "wrong_field", "not an image"),
        ({}, png(np.zeros((400, 400, 3), np.uint8)), "wrong_field", "400x400 pixels"),
        ({"rgb": [8, 8]}, b"123", "wrong_field", "3 bytes, and 8x8 RGB takes 192"),
        ({}, '{"type": "fly"}', "wrong_message", "fly"),
        ({}, "{", "wrong_message", "neither a frame nor known"),
        ({}, '{"type": "remove", "expression": 7}', "wrong_field", "no expression 7"),
        (
            {"expressions": ["a", "b", "c"]},
            '{"type": "add", "text": "d"}',
            "too_many_expressions",
            "4",
        ),
    ],
)
def test_wrong_messages(
    server: Server, start: dict[str, Any], message: str | bytes | None, code: str, text: str
) -> None:
    with opened(server, **start) as socket:
        last = answer(socket)
        if message is not None:
            assert last["schema"] == "rvos-deploy/stream/1"
            socket.send(message)
            last = answer(socket)
        assert (last["schema"], last["code"]) == ("rvos-deploy/error/1", code)
        assert text in last["message"]
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_a_silent_client_is_told_and_its_stream_freed(server: Server) -> None:
    with opened(server, expressions=list(TEXTS)) as socket:
        answer(socket)
        last = answer(socket)
    assert last["code"] == "slow_client"
    for _ in range(5):  # more than there are streams, each left without a word
        with opened(server, expressions=list(TEXTS)) as socket:
            while "code" in (head := answer(socket)):  # the one before ends now
                assert head["code"] == "too_many_streams"
                break


def test_an_inbox_refuses_a_flood_of_commands() -> None:
    inbox = Inbox(fps=None)
    for number in range(101):
        inbox.put(Remove(number))
    with pytest.raises(RequestError, match="more than 100 commands wait; read the answers"):
        inbox.put(Remove(101))
    assert inbox.next() == Remove(0)


def test_an_inbox_keeps_the_newest_frame_and_every_command() -> None:
    inbox = Inbox(fps=4.0)
    inbox.put_frame(b"0")
    inbox.put(Remove(7))
    inbox.put_frame(b"1")
    inbox.put_frame(b"2")
    assert inbox.next() == Remove(7)
    newest = inbox.next()
    assert (newest.index, newest.pts, newest.data) == (2, 0.5, b"2")  # type: ignore[union-attr]
    assert inbox.dropped == 2
