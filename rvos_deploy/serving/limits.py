"""Define the limits of a server, and how a request beyond them is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rvos_deploy.errors import RvosError
from rvos_deploy.stream_settings import StreamSettings

LOOKAHEAD = 256
"""Most frames that may wait for their decision online."""


@dataclass(frozen=True)
class Limits:
    """Hold what one replica accepts.

    Args:
        upload_bytes: of a video, uploaded or fetched.
        frames: of a video.
        offline_frames: of a video in mode offline, where all wait for the last.
        pixels: of a frame.
        input_pixels: of what a frame is resized to, for the network.
        memory: frames that the video decoder may read, anchors included.
        streams: at the same time.
        expressions: of a stream.
        letters: of an expression.
        seconds: of a request, from its first byte to its last line.
        idle_seconds: without a message from a client, or without reading what it asked for.
    """

    upload_bytes: int = 512 * 2**20
    frames: int = 18_000
    offline_frames: int = 1000
    pixels: int = 4096 * 2304
    input_pixels: int = 4 * 360 * 640
    memory: int = 256
    streams: int = 4
    expressions: int = 16
    letters: int = 500
    seconds: float = 3600.0
    idle_seconds: float = 60.0


class RequestError(RvosError):
    """Report a request that is not served.

    Attributes:
        status: HTTP status.
        code: for programs.
        retry_after: seconds after which it may be served; None: never.
    """

    def __init__(self, status: int, code: str, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status, self.code, self.retry_after = status, code, retry_after


class ClientGoneError(RequestError):
    """Report that nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "client_gone", "the client has closed the connection")


class Deadline:
    """Hold the end of a request's time. Threads may share it."""

    def __init__(self, seconds: float) -> None:
        """Start now."""
        self._seconds, self._end = seconds, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Return the seconds that are left; at least 0."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise RequestError if the time is over."""
        if not self.left:
            raise RequestError(
                408,
                "too_long",
                f"the request took more than {self._seconds:g} s; send a shorter part",
            )


class Slots:
    """Count the streams of a replica. Call it from the event loop only."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self) -> None:
        """Take one. Raises RequestError: all are taken."""
        if self.taken >= self.most:
            raise RequestError(
                503,
                "too_many_streams",
                f"all {self.most} streams of this server are in use; try again later, or start it "
                "with a greater --max-streams",
                retry_after=5,
            )
        self.taken += 1

    def free(self) -> None:
        """Free one."""
        self.taken -= 1


def check_texts(texts: list[str], limits: Limits, already: int = 0) -> None:
    """Check expressions that are added to ``already`` present ones. Raises RequestError."""
    if not texts:
        raise RequestError(
            422,
            "no_expression",
            "no expression given; say what to segment, for example 'the brown dog'",
        )
    if already + len(texts) > limits.expressions:
        raise RequestError(
            413,
            "too_many_expressions",
            f"found {already + len(texts)} expressions, at most {limits.expressions} are accepted; "
            "use several requests",
        )
    for text in texts:
        if len(text) > limits.letters:
            raise RequestError(
                413,
                "expression_too_long",
                f"an expression has {len(text)} letters, at most {limits.letters} are accepted; "
                "shorten it",
            )


def check_settings(settings: StreamSettings, limits: Limits) -> None:
    """Check how much a stream would remember. Raises RequestError."""
    if settings.lookahead > LOOKAHEAD:
        raise RequestError(
            413,
            "too_much_memory",
            f"lookahead is {settings.lookahead}, at most {LOOKAHEAD} frames may wait; give a "
            "smaller one",
        )
    remembered = (settings.window or 0) + settings.anchors
    if remembered > limits.memory:
        raise RequestError(
            413,
            "too_much_memory",
            f"memory and anchors are {remembered} frames, at most {limits.memory} are accepted; "
            "give smaller ones",
        )


def check_input(size: tuple[int, int], limits: Limits) -> None:
    """Check the (height, width) that a frame is resized to. Raises RequestError."""
    height, width = size
    if height * width > limits.input_pixels:
        raise RequestError(
            413,
            "input_too_large",
            f"frames are resized to {width}x{height}, at most {limits.input_pixels} pixels are "
            "accepted; give a smaller size or short_side",
        )


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Check the size of a frame. Raises RequestError."""
    if width * height > limits.pixels:
        raise RequestError(
            413,
            "frame_too_large",
            f"frames have {width}x{height} pixels, at most {limits.pixels} are accepted; make them "
            "smaller",
        )
