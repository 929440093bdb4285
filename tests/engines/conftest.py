"""Share the real TensorRT bindings among the engine tests, installed once a session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# pytest's importlib mode leaves this folder off the path; tests here share
# real_bindings.py.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", params=["10.9", "11"])
def real_tensorrt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bindings for ``run_with_real_bindings``, in a folder; skips where they cannot be had."""
    from real_bindings import load_real_tensorrt

    folder = tmp_path_factory.mktemp("tensorrt-bindings")
    return load_real_tensorrt(folder, request.param)
