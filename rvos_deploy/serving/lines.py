"""Pass lines from a working thread to the event loop, a few ahead of the client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import time
from collections.abc import AsyncIterator

from rvos_deploy.errors import InputError, RvosError, VideoError
from rvos_deploy.serving.limits import ClientGoneError, RequestError

LINES_AHEAD = 4
"""Lines that may wait for a client. It bounds the memory."""
ERROR_SCHEMA = "rvos-deploy/error/1"
# Seconds between two looks at whether the client is there.
_LOOK = 0.2


class Lines:
    """Hold a few lines. Create it in the event loop; ``put`` runs in one other thread."""

    def __init__(self, idle_seconds: float) -> None:
        """``idle_seconds``: time in which a client must take a line."""
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(LINES_AHEAD)
        self._loop = asyncio.get_running_loop()
        self._idle_seconds = idle_seconds
        self._closed = False

    def put(self, line: bytes) -> None:
        """Add a line, and wait while too many wait.

        Raises:
            ClientGoneError: nobody will read it.
            RequestError: nobody has read for too long.
        """
        self.check()
        future = asyncio.run_coroutine_threadsafe(self._put(line), self._loop)
        deadline = time.monotonic() + self._idle_seconds
        while True:
            try:
                return future.result(_LOOK)
            except concurrent.futures.TimeoutError:
                if self._closed or time.monotonic() > deadline:
                    future.cancel()
                    self.check()
                    raise RequestError(
                        408,
                        "slow_client",
                        f"the client has read nothing for {self._idle_seconds:g} s; read the "
                        "answer while it comes",
                    ) from None

    def end(self) -> None:
        """Say that no line follows; it never waits."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, None)

    def check(self) -> None:
        """Raise ClientGoneError if nobody reads anymore."""
        if self._closed:
            raise ClientGoneError

    def close(self) -> None:
        """Say that nobody reads anymore; ``put`` and ``check`` raise from now on."""
        self._closed = True

    async def next(self) -> bytes | None:
        """Return the next line; None behind the last one."""
        line = await self._queue.get()
        if line is not None:
            self._room.release()
        return line

    async def _put(self, line: bytes) -> None:
        await self._room.acquire()
        self._queue.put_nowait(line)

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield the lines to their end."""
        while (line := await self.next()) is not None:
            yield line


def describe_error(error: RvosError) -> dict[str, object]:
    """Return what programs and people need to know of an error."""
    if isinstance(error, RequestError):
        code = error.code
    elif isinstance(error, VideoError):
        code = "video"
    else:
        code = "wrong_field" if isinstance(error, InputError) else "internal"
    return {"schema": ERROR_SCHEMA, "code": code, "message": str(error)}


def status_of(error: RvosError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, RequestError):
        return error.status
    return 422 if isinstance(error, InputError) else 500


def json_line(content: dict[str, object]) -> bytes:
    """Return an object as a line of JSON."""
    return json.dumps(content, allow_nan=False).encode() + b"\n"
