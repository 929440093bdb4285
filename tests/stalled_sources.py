"""Sources that stop half-way: a server on loopback, and FIFOs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest


class StalledServer:
    """Answers each request with ``sent`` and then is silent, until it is closed."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []
        self.asked = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.append(client)
            with suppress(OSError):  # closed meanwhile
                client.recv(4096)
                client.sendall(self._sent)
                self.asked.set()

    def close(self) -> None:
        for each in (self._listener, *self._clients):
            each.close()


def http(body: bytes, length: int) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


@pytest.fixture
def stalled() -> Iterator[Callable[[bytes], StalledServer]]:
    """Start servers that send some bytes and then nothing."""
    servers: list[StalledServer] = []

    def start(sent: bytes) -> StalledServer:
        servers.append(StalledServer(sent))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def http_answer() -> Callable[..., bytes]:
    """A response whose body is cut, though its header promises all of it."""

    def answer(content: bytes, share: float) -> bytes:
        return http(content[: int(len(content) * share)], len(content))

    return answer


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A FIFO that nobody writes into."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path
