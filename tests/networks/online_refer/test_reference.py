"""The plain reference gives what the authors' own code gave."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from reference import Reference

SHARED = Path(__file__).parents[4] / "shared" / "onlinerefer"


@pytest.fixture(scope="module")
def golden_reference() -> Reference:
    if not SHARED.is_dir():
        pytest.skip("../shared is absent")
    golden_weight = runpy.run_path(str(SHARED / "golden_weights.py"))["golden_weight"]
    lines = (SHARED / "names.txt").read_text(encoding="utf-8").splitlines()
    weights = {}
    for line in lines:
        name, _, shape = line.partition(" ")
        weights[name] = golden_weight(name, tuple(map(int, shape.strip("[]").split(","))))
    return Reference(weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["golden.npz", "golden_b.npz"])
def test_the_authors_values(golden_reference: Reference, name: str) -> None:
    golden = np.load(SHARED / name)
    frames = np.load(SHARED / "golden.npz")["frames"]
    text = golden_reference.text(golden["token_ids"])
    near(text.numpy(), golden["text_tokens"], "text tokens")
    (answers,) = golden_reference.run(frames, [golden["token_ids"]], [0])
    assert len(answers) == len(frames) == 4
    for t, answer in answers.items():
        for part in ("logits", "boxes", "masks", "outputs", "track", "memory", "mask_features"):
            if f"{part}_{t}" in golden:
                near(getattr(answer, part), golden[f"{part}_{t}"], f"{part} of frame {t}")


def near(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Within 1e-4 of the largest magnitude: the authors' sine positions are float32."""
    assert found.shape == expected.shape, what
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, what
