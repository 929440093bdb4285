"""Load libraries that were built with gcc's sanitizers into a Python process."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def sanitizer_environment() -> dict[str, str]:
    """The environment of such a process; skips the test where gcc or its sanitizers are missing."""
    gcc = shutil.which("gcc")
    if gcc is None or shutil.which("g++") is None:
        pytest.skip("gcc is missing")
    # The sanitizers' runtimes must be there before Python's own allocations.
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [
        subprocess.run(
            [gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        for name in names
    ]
    libraries = [Path(done.stdout.strip()) for done in found]
    if not all(library.is_absolute() for library in libraries):
        pytest.skip("gcc has no sanitizers")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONMALLOC": "malloc",
    }
