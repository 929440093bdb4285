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
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(LINES_AHEAD)
        self._loop = asyncio.get_running_loop()
        self._idle_seconds = idle_seconds
        self._closed = False

    def put(self, line: bytes | None) -> None:
        """Add a line, and wait while too many wait; None ends them.

        Raises:
            ClientGoneError: nobody will read it.
            RequestError: nobody has read for too long.
        """
        if self._closed:
            raise ClientGoneError
        future = asyncio.run_coroutine_threadsafe(self._queue.put(line), self._loop)
        deadline = time.monotonic() + self._idle_seconds
        while True:
            try:
                return future.result(_LOOK)
            except concurrent.futures.TimeoutError:
                if self._closed or time.monotonic() > deadline:
                    future.cancel()
                    if self._closed:
                        raise ClientGoneError from None
                    raise RequestError(
                        408,
                        "slow_client",
                        f"the client has read nothing for {self._idle_seconds:g} s; read the "
                        "answer while it comes",
                    ) from None

    async def next(self) -> bytes | None:
        """Return the next line; None behind the last one."""
        return await self._queue.get()

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield the lines to their end."""
        while (line := await self.next()) is not None:
            yield line

    def close(self) -> None:
        """Say that nobody reads anymore; ``put`` raises from now on."""
        self._closed = True


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
