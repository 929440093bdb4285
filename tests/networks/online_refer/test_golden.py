"""The plain reference and the network give what the authors' own code gave."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rvos_deploy.networks.online_refer.config import preset
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer

sys.path.insert(0, str(Path(__file__).parent))
from batched import frame_outputs
from reference import Reference

SHARED = Path(__file__).parents[4] / "shared" / "onlinerefer"
FILES = ("golden.npz", "golden_b.npz")
PARTS = ("logits", "boxes", "masks", "outputs", "track", "memory", "mask_features")

Weights = dict[str, NDArray[np.float32]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/onlinerefer is absent"),
]


@pytest.fixture(scope="module")
def weights() -> Weights:
    golden_weight = runpy.run_path(str(SHARED / "golden_weights.py"))["golden_weight"]
    lines = (SHARED / "names.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        name, _, shape = line.partition(" ")
        found[name] = golden_weight(name, tuple(map(int, shape.strip("[]").split(","))))
    return found


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return np.load(SHARED / FILES[0])["frames"]


def test_the_reference_gives_the_authors_values(
    weights: Weights, frames: NDArray[np.uint8]
) -> None:
    """Within 1e-5 of the largest magnitude: the authors' sine positions are float32."""
    reference = Reference(weights)
    for name in FILES:
        golden = np.load(SHARED / name)
        text = reference.text(golden["token_ids"])
        near(text.numpy(), golden["text_tokens"], 1e-5, "text tokens")
        (answers,) = reference.run(frames, [golden["token_ids"]], [0])
        assert len(answers) == len(frames) == 4
        for t, answer in answers.items():
            for part in PARTS:
                if f"{part}_{t}" in golden:
                    near(getattr(answer, part), golden[f"{part}_{t}"], 1e-5, f"{part} of {t}")


def test_the_network_gives_the_authors_values(weights: Weights, frames: NDArray[np.uint8]) -> None:
    """Both sentences in one batch, so the shorter one is padded."""
    network = OnlineRefer(preset("onlinerefer-r50")).eval()
    missing, unexpected = network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.items()}, strict=False
    )
    assert (missing, unexpected) == ([], ["criterion.empty_weight"])
    goldens = [np.load(SHARED / name) for name in FILES]
    sentences = [golden["token_ids"] for golden in goldens]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        outputs = frame_outputs(network.to(dtype), frames, sentences, (0, 0))
        for t, present, output in outputs:
            assert present == [0, 1]
            for e, golden in enumerate(goldens):
                logits, what = golden[f"logits_{t}"].astype(np.float64), f"{dtype}, frame {t}"
                queries, best = len(logits), int(logits.argmax())
                assert output.best[e] == best
                near(output.scores[e, :queries], 1 / (1 + np.exp(-logits)), tolerance, what)
                near(output.boxes[e, :queries], golden[f"boxes_{t}"], tolerance, what)
                near(output.mask_logits[e], golden[f"masks_{t}"][best], tolerance, what)
                near(output.content[e], golden[f"track_{t}"][0], tolerance, what)


def near(found: torch.Tensor | NDArray, expected: NDArray, tolerance: float, what: str) -> None:
    found = np.asarray(found, np.float64)
    assert found.shape == expected.shape, what
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{what}: {error:.2g} of the largest magnitude"
