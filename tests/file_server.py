"""An HTTP server on loopback that serves files as real ones do, and fails as they do."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Served:
    """A file, and how the server answers for it.

    Args:
        content: of the file.
        etag: its version; None: it has none.
        ranges: whether the rest of a file can be asked for.
        checks_version: whether If-Range is heeded.
        shift: bytes by which the rest starts elsewhere than was asked for.
        cut: bytes after which the connection breaks.
        hold: bytes after which the server is silent until ``release`` is set.
        length: whether Content-Length is sent.
        announced: bytes that Content-Length says, if not the truth.
        status: another answer than 200.
        location: where the answer redirects to.
        headers: more of them.
    """

    content: bytes
    etag: str | None = '"1"'
    ranges: bool = True
    checks_version: bool = True
    shift: int = 0
    cut: int | None = None
    hold: int | None = None
    length: bool = True
    announced: int | None = None
    status: int = 200
    location: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class FileServer:
    """Serves ``files``, by path, and notes what is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._scheme = "http"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def use_tls(self, certificate: Path, key: Path) -> None:
        """Speak https from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # The handshake is done in the thread of a request: a client that refuses stops no other.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._scheme = "https"

    def url(self, path: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}{path}"

    def serve(self, path: str, content: bytes, **how: object) -> str:
        """Serve a file from now on, and give its address."""
        self.files[path] = Served(content, **how)  # type: ignore[arg-type]
        return self.url(path)

    @property
    def ranges(self) -> list[str | None]:
        """The Range of each request so far."""
        return [headers.get("Range") for _, headers in self.asked]

    def close(self) -> None:
        for file in self.files.values():
            file.release.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            server.asked.append((self.path, dict(self.headers)))
            served = server.files.get(self.path)
            with suppress(OSError):  # the client has gone
                if served is None:
                    self.send_error(404)
                elif served.location is not None:
                    self.send_response(302 if served.status == 200 else served.status)
                    self.send_header("Location", served.location)
                    self.end_headers()
                elif served.status != 200:
                    self.send_error(served.status)
                else:
                    self._send(served)

        def _send(self, served: Served) -> None:
            start = self._start(served)
            if start and start >= len(served.content):
                self.send_error(416)
                return
            body, whole = served.content[start:], len(served.content)
            self.send_response(206 if start else 200)
            if served.length:
                self.send_header("Content-Length", str(served.announced or len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            if served.etag is not None:
                self.send_header("ETag", served.etag)
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if served.hold is not None:
                self.wfile.write(body[: served.hold])
                served.held.set()
                served.release.wait()
                body = body[served.hold :]
            self.wfile.write(body if served.cut is None else body[: served.cut])

        def _start(self, served: Served) -> int:
            wanted = self.headers.get("Range")
            same = self.headers.get("If-Range") == served.etag or not served.checks_version
            if wanted is None or not served.ranges or not same:
                return 0
            return int(wanted.removeprefix("bytes=").removesuffix("-")) + served.shift

    return Handler


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server without files, which no proxy of this machine stands before."""
    monkeypatch.setenv("no_proxy", "*")
    server = FileServer()
    yield server
    server.close()
