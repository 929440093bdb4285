"""The diagnosis tells bad masks from bad choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rvos_deploy.benchmarks.selection import (
    THRESHOLDS,
    ExpressionDiagnosis,
    diagnose_expression,
    mean_j,
    summarise,
)
from rvos_deploy.evaluation.metrics import region_similarity

HALF = THRESHOLDS.index(0.5)


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth of three objects over two frames, and logits of four queries: three fit, one is odd."""
    truth = torch.zeros(3, 2, 16, 24, dtype=torch.bool)
    for k in range(3):
        truth[k, :, 2:8, 8 * k : 8 * k + 6] = True
    truth[2, 1] = False  # leaves
    masks = torch.zeros(4, 2, 16, 24, dtype=torch.bool)
    masks[:3] = truth
    masks[1, :, 7] = False
    masks[3, :, 12:15, 0:3] = True
    return truth, torch.where(masks, 5.0, -5.0).transpose(0, 1)


@pytest.mark.parametrize(
    ("scores", "meant", "right", "j"),
    [
        ([0.9, 0.1, 0.1, 0.1], [0], True, 1.0),
        ([0.9, 0.1, 0.9, 0.1], [0, 2], True, 1.0),
        ([0.1, 0.9, 0.1, 0.1], [1], True, 5 / 6),
        ([0.1, 0.9, 0.1, 0.1], [0], False, 0.0),
        ([0.9, 0.1, 0.1, 0.9], [0], False, 36 / 45),
        ([0.1, 0.1, 0.1, 0.1], [], True, 1.0),
        ([0.1, 0.1, 0.1, 0.1], [0], False, 0.0),
        ([0.9, 0.1, 0.1, 0.1], [], False, 0.0),
    ],
)
def test_masks_and_choices(scores: list[float], meant: list[int], right: bool, j: float) -> None:
    truth, logits = scene()
    oracle, selected, values = diagnose_expression(logits, torch.tensor(scores), truth, meant)
    assert selected[HALF] == right
    assert values[HALF] == pytest.approx(j)
    assert oracle == pytest.approx(5 / 6 if meant == [1] else 1.0)


def test_j_is_that_of_the_evaluation() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 5, 9, 11)) > 0.6
    one[0] = other[0] = False
    expected = np.mean([region_similarity(a, b) for a, b in zip(one, other, strict=True)])
    assert mean_j(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(expected)


def test_the_best_threshold_is_taken_unless_one_is_named() -> None:
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
