"""Test the launch of the plugin's kernel from Python: no GPU, the real cuda.bindings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_kernels import build

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver of its own")
def test_the_real_bindings_pass_the_plugins_arguments(tmp_path: Path) -> None:
    """cuda.bindings call a C library of ours, whose kernel writes what it was given."""
    build("memory_driver.cpp", tmp_path / "libcuda.so.1")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("launch_through_bindings.py"))],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "the launch has its arguments\n", done.stderr
