"""A live HTTP server on loopback: it sends a stream, stalls, drops the connection, comes back."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Connection:
    """What the server does with one request.

    Args:
        body: sent in chunks of HTTP, unless ``multipart`` or ``length`` is given.
        then: "end" ends the answer as HTTP does, "drop" closes the connection in its middle,
            "stall" keeps it open and is silent.
        pause: seconds between two parts of the body: a camera sends no faster than it sees.
        parts: number of parts.
        content_type: of the answer.
        length: the length that the header announces; None: chunks.
        refuse: whether the server closes without an answer.
    """

    body: bytes = b""
    then: str = "end"
    pause: float = 0.0
    parts: int = 1
    content_type: str = "video/mp2t"
    length: int | None = None
    refuse: bool = False


class LiveServer:
    """Answers each request by the next connection; the last one is repeated."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = list(connections)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._closed = threading.Event()
        self.requests: list[float] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/live"

    def close(self) -> None:
        self._closed.set()
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number = min(len(self.requests), len(self._connections) - 1)
            self.requests.append(time.monotonic())
            self._open.append(client)
            threading.Thread(
                target=self._answer, args=(client, self._connections[number]), daemon=True
            ).start()

    def _answer(self, client: socket.socket, answer: Connection) -> None:
        with suppress(OSError):  # the reader has gone
            client.recv(65_536)
            if not answer.refuse:
                self._send(client, answer)
            if answer.then == "stall":
                return
            if answer.then == "drop":
                # Zero seconds to linger: the reader gets a reset, as from a camera that lost power.
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()

    def _send(self, client: socket.socket, answer: Connection) -> None:
        chunked = answer.length is None
        how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {answer.length}"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\n{how}\r\n\r\n"
        client.sendall(head.encode())
        step = max(1, -(-len(answer.body) // answer.parts))
        for at in range(0, len(answer.body), step):
            part = answer.body[at : at + step]
            client.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if answer.pause and self._closed.wait(answer.pause):
                return
        if chunked and answer.then == "end":
            client.sendall(b"0\r\n\r\n")
        if answer.then == "drop":
            time.sleep(0.05)  # a reset may discard what the reader has not received yet


@pytest.fixture
def live_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LiveServer]]:
    """Start servers that no proxy of this machine stands before."""
    monkeypatch.setenv("no_proxy", "*")
    servers: list[LiveServer] = []

    def start(*connections: Connection) -> LiveServer:
        servers.append(LiveServer(connections))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
