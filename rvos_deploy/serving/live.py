"""Segment live frames of a WebSocket: the newest frame wins, and expressions come and go.

Messages of the client: JSON ``start`` first; then frames as binary messages, and JSON ``add``,
``remove`` and ``end``. The answers are the lines that a request for a video gets.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.images import decode_rgb
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.serving.fields import LiveFields, live_fields
from rvos_deploy.serving.limits import (
    ClientGoneError,
    Deadline,
    RequestError,
    check_pixels,
    check_settings,
    check_texts,
)
from rvos_deploy.serving.lines import Lines, describe_error, json_line
from rvos_deploy.serving.segmentation import SUMMARY_SCHEMA, Served, known_error
from rvos_deploy.video.frames import Frame
from rvos_deploy.video.sinks.frame_lines import frame_line


class Add(msgspec.Struct, tag="add", forbid_unknown_fields=True):
    """Follow another expression from the next frame on."""

    text: str


class Remove(msgspec.Struct, tag="remove", forbid_unknown_fields=True):
    """Stop following an expression."""

    expression: int


class End(msgspec.Struct, tag="end", forbid_unknown_fields=True):
    """Decide all frames, send the summary, and close."""


Command = Add | Remove | End

_MOST_WAITING = 100
"""Most commands that wait; each is done at the next frame at the latest."""


@dataclass(frozen=True)
class Arrived:
    """Hold a frame as it came: its number, its time in seconds, and its bytes."""

    index: int
    pts: float
    data: bytes


class Inbox:
    """Hold what a client sent, in order; of frames that wait, only the newest one."""

    def __init__(self, fps: float | None) -> None:
        """``fps``: gives frames their times; None: the time of arrival."""
        self._fps = fps
        self._items: deque[Arrived | Command] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._frames = 0
        self._first = 0.0
        self.dropped = 0
        """Number of frames that a newer one replaced."""

    def put_frame(self, data: bytes) -> None:
        """Add a frame; a frame that still waits is dropped."""
        now = time.monotonic()
        with self._changed:
            if not self._frames:
                self._first = now
            pts = now - self._first if self._fps is None else self._frames / self._fps
            waiting = [item for item in self._items if isinstance(item, Arrived)]
            for item in waiting:
                self._items.remove(item)
                self.dropped += 1
            self._items.append(Arrived(self._frames, pts, data))
            self._frames += 1
            self._changed.notify()

    def put(self, command: Command) -> None:
        """Add a command. Raises RequestError: too many wait."""
        with self._changed:
            if len(self._items) > _MOST_WAITING:
                raise RequestError(
                    413,
                    "too_many_messages",
                    f"more than {_MOST_WAITING} commands wait; read the answers before you send "
                    "more",
                )
            self._items.append(command)
            self._changed.notify()

    def close(self) -> None:
        """Say that the client is gone."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next(self) -> Arrived | Command:
        """Wait for the next item. Raises ClientGoneError."""
        with self._changed:
            while not (self._items or self._closed):
                self._changed.wait(1.0)
            if self._closed:
                raise ClientGoneError
            return self._items.popleft()


class LiveSession:
    """Run one live stream. ``receive`` is called in the event loop, ``work`` in a thread."""

    def __init__(
        self, served: Served, message: Mapping[str, object], deadline: Deadline, lines: Lines
    ) -> None:
        """Read the first message. Raises RvosError: it is wrong, or the client is gone."""
        if message["type"] == "websocket.disconnect":
            raise ClientGoneError
        if not isinstance(text := message.get("text"), str):
            raise RequestError(
                422, "wrong_message", "the first message is not text; send 'start' as JSON first"
            )
        self._served, self._deadline, self._lines = served, deadline, lines
        self.fields: LiveFields = live_fields(text)
        if self.fields.fps is not None and not 0 < self.fields.fps < 1000:
            raise RequestError(
                422, "wrong_field", f"fps must lie in 0..1000, found {self.fields.fps}"
            )
        if self.fields.rgb is not None:
            width, height = self.fields.rgb
            if min(width, height) < 1:
                raise RequestError(422, "wrong_field", f"rgb cannot be {width}x{height}")
            check_pixels(width, height, served.limits)
        if self.fields.expressions:
            check_texts(self.fields.expressions, served.limits)
        self._settings = self.fields.settings(served.defaults)
        check_settings(self._settings, served.limits)
        self._inbox = Inbox(self.fields.fps)
        self.ended = False
        """Whether the client has said that nothing follows."""

    def receive(self, message: Mapping[str, object]) -> None:
        """Take a message of ASGI. Raises RequestError: it is wrong, or the time is over."""
        self._deadline.check()
        if isinstance(data := message.get("bytes"), bytes):
            self._inbox.put_frame(data)
            return
        try:
            command = msgspec.json.decode(str(message.get("text")), type=Command)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RequestError(
                422, "wrong_message", f"a message is neither a frame nor known: {error}"
            ) from error
        self._inbox.put(command)
        self.ended = self.ended or isinstance(command, End)

    def close(self) -> None:
        """Say that the client is gone."""
        self._inbox.close()

    def work(self) -> str:
        """Segment until the end, in this thread; return what became of it, for measurements."""
        try:
            self._work()
            return "done"
        except ClientGoneError:
            return "client_gone"
        except Exception as error:
            described = describe_error(known_error(error, self._served.report))
            with suppress(RequestError):
                self._lines.put(json_line(described))
            return str(described["code"])
        finally:
            self._lines.end()

    def _work(self) -> None:
        began, frames, last = time.perf_counter(), 0, time.perf_counter()
        with self._served.segmenter.stream(self.fields.expressions, self._settings) as stream:
            self._lines.put(json_line(self._served.head(None, self.fields.expressions)))
            while not isinstance(item := self._inbox.next(), End):
                if isinstance(item, Arrived):
                    dropped = self._inbox.dropped
                    image = self._decode(item.data)
                    frame = Frame(item.index, item.pts, image).with_dropped(dropped)
                    height, width = image.shape[:2]
                    self._served.check_frame(height, width, self._settings)
                    for result in stream.push(frame):
                        self._lines.put(frame_line(result, _texts(result), f"{result.index:05d}"))
                        now = time.perf_counter()
                        self._served.measurements.frame(now - last)
                        frames, last = frames + 1, now
                else:
                    self._change(stream, item)
            for result in stream.flush():
                self._deadline.check()
                self._lines.put(frame_line(result, _texts(result), f"{result.index:05d}"))
                frames += 1
        self._served.measurements.dropped(self._inbox.dropped)
        self._lines.put(
            json_line(
                {
                    "schema": SUMMARY_SCHEMA,
                    "frames": frames,
                    "dropped": self._inbox.dropped,
                    "seconds": round(time.perf_counter() - began, 3),
                    "damage": None,
                }
            )
        )

    def _change(self, stream: Stream, command: Add | Remove) -> None:
        if isinstance(command, Add):
            check_texts([command.text], self._served.limits, len(stream.expressions))
            number = stream.add_expression(command.text)
            answer = {"type": "added", "expression": number, "text": command.text}
        else:
            stream.remove_expression(command.expression)
            answer = {"type": "removed", "expression": command.expression}
        self._lines.put(json_line(answer))

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        if self.fields.rgb is None:
            return decode_rgb(data, "the frame", self._served.limits.pixels)
        width, height = self.fields.rgb
        if len(data) != 3 * width * height:
            raise InputError(
                f"a frame has {len(data)} bytes, and {width}x{height} RGB takes "
                f"{3 * width * height}; send frames of the size in 'start'"
            )
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _texts(result: FrameMasks) -> dict[int, str]:
    return dict(zip(result.expressions, result.texts, strict=True))
