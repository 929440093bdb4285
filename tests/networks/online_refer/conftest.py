"""A small network of the family, and the authors' answers with weights by a rule."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.networks.online_refer.config import preset

SHARED = Path(__file__).parents[4] / "shared" / "onlinerefer"


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder with names and golden values; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/onlinerefer is absent")
    return SHARED


@pytest.fixture(scope="session")
def golden_weight(published: Path) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """The rule by which the authors' network got its weights for the golden values."""
    spec = importlib.util.spec_from_file_location("golden_weights", published / "golden_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.golden_weight


@pytest.fixture(scope="session")
def tiny_online_refer():  # type: ignore[no-untyped-def]
    """The small preset with random weights, in eval mode. Do not change it."""
    from rvos_deploy.networks.online_refer.modules.checkpoint import random_network

    return random_network(preset("onlinerefer-tiny"), seed=0)
