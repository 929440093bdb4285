"""Test that the diagnosis tells bad masks from bad choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rvos_deploy.benchmarks.studies.selection import (
    THRESHOLDS,
    ExpressionDiagnosis,
    diagnose_expression,
    network_truth,
    summarise,
)
from rvos_deploy.graph_io.frame_geometry import letterbox

HALF = THRESHOLDS.index(0.5)


GEOMETRY = letterbox((32, 64), (32, 64))


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth of three objects over two frames at stride 4, and logits of four queries: three fit,
    one is odd.
    """
    truth = torch.zeros(3, 2, 8, 16, dtype=torch.bool)
    for k in range(3):
        truth[k, :, 1:5, 5 * k : 5 * k + 4] = True
    truth[2, 1] = False  # leaves
    masks = torch.zeros(4, 2, 8, 16, dtype=torch.bool)
    masks[:3] = truth
    masks[1, :, 4] = False
    masks[3, :, 6:8, 0:2] = True
    return truth, torch.where(masks, 5.0, -5.0).transpose(0, 1)


@pytest.mark.parametrize(
    ("scores", "meant", "right", "expected"),
    [
        ([0.9, 0.1, 0.1, 0.1], [0], True, 1.0),
        ([0.9, 0.1, 0.9, 0.1], [0, 2], True, 1.0),
        ([0.1, 0.9, 0.1, 0.1], [1], True, 3 / 4),
        ([0.1, 0.9, 0.1, 0.1], [0], False, 0.0),
        ([0.9, 0.1, 0.1, 0.9], [0], False, 16 / 20),
        ([0.1, 0.1, 0.1, 0.1], [], True, 1.0),
        ([0.1, 0.1, 0.1, 0.1], [0], False, 0.0),
        ([0.9, 0.1, 0.1, 0.1], [], False, 0.0),
    ],
)
def test_errors_of_masks_and_of_choices_are_told_apart(
    scores: list[float], meant: list[int], right: bool, expected: float
) -> None:
    truth, logits = scene()
    union = truth[meant].any(dim=0).repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    oracle, selected, values = diagnose_expression(
        logits, torch.tensor(scores), truth, meant, union, GEOMETRY
    )
    assert selected[HALF] == right
    # Bilinear scaling rounds the corners of what is four pixels wide at stride 4.
    assert values[HALF] == pytest.approx(expected, abs=0.03)
    assert oracle == pytest.approx(3 / 4 if meant == [1] else 1.0, abs=0.03)
    thresholds_passed = np.array(THRESHOLDS) < max(scores)
    assert len({v for v, p in zip(values, thresholds_passed, strict=True) if p}) <= 2


def test_the_truth_is_resized_to_the_networks_maps() -> None:
    geometry = letterbox((96, 200), (64, 128))
    assert (geometry.content, geometry.padded) == ((61, 128), (64, 128))
    truth = torch.zeros(1, 1, 96, 200, dtype=torch.bool)
    truth[..., :48, 100:] = True
    small = network_truth(truth, geometry)
    assert small.shape == (1, 1, 16, 32)
    assert small[0, 0, :7, 16:].all()
    assert not small[0, 0, 9:].any()
    assert not small[..., :15].any()


def test_the_best_threshold_is_the_default() -> None:
    rows = [
        ExpressionDiagnosis("motion", 0.9, (False,) * 18, tuple(np.linspace(0, 0.5, 18))),
        ExpressionDiagnosis("no_target", 1.0, (True,) * 18, (0.2,) * 9 + (1.0,) + (0.2,) * 8),
    ]
    best = summarise(rows)
    assert best["threshold"] == THRESHOLDS[9]
    assert best["all"]["j"] == pytest.approx((1 + 0.5 * 9 / 17) / 2)
    named = summarise(rows, 0.95)
    assert named["by_kind"]["motion"] == {
        "j": 0.5, "oracle_j": 0.9, "selection_accuracy": 0.0, "count": 1,
    }  # fmt: skip
    assert named["all"]["selection_accuracy"] == 0.5
