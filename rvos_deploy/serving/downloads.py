"""Fetch a video from an address that a stranger names.

A request could otherwise reach what only this machine reaches (cloud metadata, services behind a
firewall). So only http and https are fetched, and every connection, also after a redirect, goes to
an address that was checked: the name is resolved once, and the connection uses that result.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from rvos_deploy.errors import one_line
from rvos_deploy.redaction import redact
from rvos_deploy.serving.limits import Limits, RequestError

_REDIRECTS = 5
_REDIRECT_CODES = (301, 302, 303, 307, 308)
_CONNECT_SECONDS = 10.0
_MAX_LENGTH = 4096


def fetch(
    url: str,
    folder: Path,
    limits: Limits,
    check: Callable[[], None],
    *,
    allow_private: bool = False,
) -> Path:
    """Fetch a video into ``folder``, and return its file.

    Args:
        url: http or https.
        folder: belongs to this request.
        limits: of the server.
        check: called for every part; what it raises ends the transfer.
        allow_private: also fetch from loopback, private and link-local addresses.

    Raises:
        RequestError: the address is not allowed, does not answer, or holds too much.
    """
    backend = _CheckedBackend(allow_private)
    timeout = {
        "connect": _CONNECT_SECONDS,
        "read": limits.idle_seconds,
        "write": _CONNECT_SECONDS,
        "pool": _CONNECT_SECONDS,
    }
    with httpcore.ConnectionPool(network_backend=backend) as pool:
        for _ in range(_REDIRECTS + 1):
            _check(url)
            check()
            try:
                with pool.stream("GET", url, extensions={"timeout": timeout}) as response:
                    if response.status in _REDIRECT_CODES:
                        url = urljoin(url, _header(response.headers, b"location"))
                        continue
                    if response.status != 200:
                        raise RequestError(
                            422, "url", f"{redact(url)} answers with status {response.status}"
                        )
                    return _save(response.iter_stream(), folder / "video", limits, check)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                raise _unreachable(url, error) from error
            except (httpcore.ProtocolError, OSError, ValueError) as error:
                raise _unreachable(url, error) from error
    raise RequestError(422, "url", f"{redact(url)} was reached by more than {_REDIRECTS} redirects")


def _unreachable(url: str, error: Exception) -> RequestError:
    reason = one_line(error) or type(error).__name__
    return RequestError(422, "url", f"{redact(url)} cannot be fetched: {reason}")


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RequestError(422, "url", "the url is not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or len(url) > _MAX_LENGTH:
        raise RequestError(
            422, "url", f"'{one_line(redact(url))}' is not an http or https address; upload a file"
        )
    if not url.isascii() or any(letter.isspace() for letter in url) or port == 0:
        raise RequestError(422, "url", "the url holds characters that must be escaped")


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    raise RequestError(422, "url", "a redirect names no address")


def _save(parts: Iterable[bytes], path: Path, limits: Limits, check: Callable[[], None]) -> Path:
    size = 0
    with path.open("xb") as file:
        for part in parts:
            check()
            size += len(part)
            if size > limits.upload_bytes:
                raise RequestError(
                    413,
                    "body_too_large",
                    f"the video is larger than {limits.upload_bytes / 2**20:g} MiB; use a smaller "
                    "one",
                )
            file.write(part)
    return path


class _CheckedBackend(httpcore.NetworkBackend):
    """Connect only to addresses that are allowed."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **options: Any
    ) -> httpcore.NetworkStream:
        """Resolve the name once, and connect to what was checked."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if not self._allow_private and not is_public(address):
                raise RequestError(
                    403,
                    "private_url",
                    f"{host} is not an address of the public internet; upload the file, or start "
                    "the server with --allow-private-urls",
                )
        for address in addresses[:-1]:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return self._backend.connect_tcp(address, port, timeout, *args, **options)
        return self._backend.connect_tcp(addresses[-1], port, timeout, *args, **options)


_HOLD_IPV4 = ipaddress.IPv6Network("64:ff9b::/96")
"""RFC 6052: a NAT64 gateway connects to the IPv4 address in the last 32 bits."""
_GLOBAL = ipaddress.IPv6Network("2000::/3")
"""RFC 4291: the addresses that the public internet uses."""


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # An address that holds another one leads there.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _HOLD_IPV4:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _GLOBAL:
            return False
    return ip.is_global and not ip.is_multicast
