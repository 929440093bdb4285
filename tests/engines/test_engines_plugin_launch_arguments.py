"""Test the launch of the plugin's kernel from Python: no GPU, the real cuda.bindings."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_kernels import through_bindings

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")


def test_the_real_bindings_pass_the_plugins_arguments(tmp_path: Path) -> None:
    """cuda.bindings call a C library of ours, whose kernel writes what it was given."""
    script = Path(__file__).with_name("launch_through_bindings.py")
    done = through_bindings("memory_driver.cpp", script, tmp_path)
    assert done.stdout == "the launch has its arguments\n", done.stderr
