"""Define the limits of a server, and how a request beyond them is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rvos_deploy.errors import RvosError


@dataclass(frozen=True)
class Limits:
    """Hold what one replica accepts.

    Args:
        upload_bytes: of a video, uploaded or fetched.
        frames: of a video.
        pixels: of a frame.
        streams: at the same time.
        expressions: of a stream.
        letters: of an expression.
        seconds: of a request.
        idle_seconds: without a message from a client, or without reading what it asked for.
    """

    upload_bytes: int = 512 * 2**20
    frames: int = 18_000
    pixels: int = 4096 * 2304
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

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one for the block. Raises RequestError: all are taken."""
        self.take()
        try:
            yield
        finally:
            self.free()


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


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Check the size of a frame. Raises RequestError."""
    if width * height > limits.pixels:
        raise RequestError(
            413,
            "frame_too_large",
            f"frames have {width}x{height} pixels, at most {limits.pixels} are accepted; make them "
            "smaller",
        )
