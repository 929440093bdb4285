"""Both networks' bundles, and a server that serves one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "backends"))
from fake_server import Server

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.triton.repository import RepositoryOptions, export_repository


@pytest.fixture(scope="module", params=["pan2024", "online_refer"])
def source(request: pytest.FixtureRequest) -> Path:
    """The packaged bundle, then one of OnlineRefer."""
    if request.param == "pan2024":
        return open_bundle("tiny").path
    return request.getfixturevalue("online_refer_bundle")


@pytest.fixture(scope="session")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)


@pytest.fixture
def tiny_server(tmp_path: Path) -> Iterator[Server]:
    """Two streams of the packaged bundle, of three expressions at most."""
    options = RepositoryOptions(streams=2, expressions=3)
    export_repository("tiny", tmp_path / "models", options)
    server = Server(tmp_path / "models").load()
    yield server
    server.model.finalize()
