"""Check where a server is about to listen."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from rvos_deploy.errors import InputError, one_line


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address or name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
