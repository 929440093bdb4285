"""Check where a server is about to listen, and which requests of browsers it may answer.

A page of any site may send this machine a request from the browser of somebody who works here, and
its name may lead to this machine. So a request that names another site as its origin is refused,
and a server without a password answers only under names of this machine.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

from rvos_deploy.errors import InputError, one_line


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address or name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def callable_host(host: str) -> str:
    """Return the host that a client on this machine calls, where a server listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def url_of(host: str, port: int) -> str:
    """Return the address that a client on this machine calls."""
    called = callable_host(host)
    return f"http://[{called}]:{port}" if ":" in called else f"http://{called}:{port}"


def free_port(host: str, port: int) -> int:
    """Return the port, and check that it is free; 0: find a free one.

    Raises InputError: it is taken, or the address is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            # A port whose connections are closing is free, as servers see it.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nothing can listen on {host}:{port} ({one_line(error)}); choose another --port, or "
            "check --host"
        ) from error


def foreign(
    headers: Iterable[tuple[bytes, bytes]], *, any_name: bool
) -> Literal["other_name", "other_site"] | None:
    """Tell whether a request comes from another site, or under a name that is not allowed.

    Args:
        headers: of the request, with names in lower case, as ASGI has them.
        any_name: whether the server answers under every name, because it asks for a password.
    """
    found = {name: value.decode("latin-1").lower() for name, value in headers}
    host = found.get(b"host", "")
    if not any_name and not is_loopback(_name(f"//{host}")):
        return "other_name"
    origin = found.get(b"origin")
    if origin is not None and _place(origin) != host:
        return "other_site"
    return None


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
