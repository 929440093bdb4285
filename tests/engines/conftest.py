"""Share the real TensorRT bindings among the engine tests, installed once a session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# pytest's importlib mode leaves this folder off the path; tests here share
# real_bindings.py.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def real_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``run_with_real_bindings``; skips where the bindings cannot be had."""
    from real_bindings import load_real_tensorrt

    return load_real_tensorrt(tmp_path_factory.mktemp("tensorrt-bindings"))
