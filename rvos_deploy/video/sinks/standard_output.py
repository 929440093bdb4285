"""Write bytes to standard output."""

from __future__ import annotations

import os
import sys

from rvos_deploy.errors import InputError, VideoError


class StandardOutput:
    """Write each piece at once, so that a reader gets whole frames without delay."""

    def __init__(self) -> None:
        """Flush what was printed before. Raises InputError: there is no standard output."""
        if sys.stdout is None:
            raise InputError("standard output is closed; name another target")
        sys.stdout.flush()
        self._file = sys.stdout.fileno()

    def write(self, content: bytes | memoryview) -> int:
        """Write all of it, and return its length. Raises VideoError: nobody reads it anymore."""
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise VideoError(
                f"standard output cannot be written: {error.strerror}; the program that reads it "
                "has ended"
            ) from error
        return len(content)
