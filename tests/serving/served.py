"""Start and stop a server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import pytest

FRAMES = 8
TEXTS = ("the star that moves to the left", "everything that moves")
PATIENCE = 120


@dataclass
class Server:
    """A process of the command, and where it listens."""

    child: subprocess.Popen[str]
    address: str
    first_lines: list[str]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Stop the server; return its exit code, and what it printed on standard error."""
        self.child.send_signal(number)
        _, stderr = self.child.communicate(timeout=PATIENCE)
        return self.child.returncode, stderr


def start_server(*options: object, **variables: str) -> Server:
    """Start the command, and wait until it says where it listens."""
    for name in ("ray.serve", "python_multipart", "httpcore"):
        if find_spec(name.partition(".")[0]) is None:
            pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-m", "rvos_deploy", "serve", *map(str, options), "--port", "0"]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
        start_new_session=True,
    )
    assert child.stdout is not None
    lines = [child.stdout.readline(), child.stdout.readline()]
    found = re.search(r"http://[\d.]+:\d+", lines[0])
    if not found:
        child.kill()
        pytest.fail(f"{lines} {child.communicate()}")
    return Server(child, found[0], lines)
