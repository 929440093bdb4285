"""Test matching: costs against loops over pairs, assignment against all permutations."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
import torch.nn.functional as F

from rvos_deploy.errors import InputError
from rvos_deploy.training.matching import (
    MatchingWeights,
    mask_costs,
    match,
    matching_costs,
    pack_tubes,
)

# Means and sums of 200 float64 terms.
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def naive_mask_cost(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels)
    probability = 1 / (1 + torch.exp(-logits))
    overlap = (probability * labels).sum()
    dice = 1 - (2 * overlap + 1) / (probability.sum() + labels.sum() + 1)
    return float(cross_entropy), float(dice)


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_costs_equal_those_of_each_pair(scale: float) -> None:
    """Logits include 200: nothing overflows, and the cross-entropy stays exact."""
    logits = torch.randn(2, 4, 200, dtype=torch.float64) * scale
    labels = torch.rand(2, 3, 200, dtype=torch.float64).round(decimals=1)
    class_logits = torch.randn(2, 4, 2, dtype=torch.float64)
    cross_entropy, dice = mask_costs(logits, labels)
    costs = matching_costs(class_logits, cross_entropy, dice, MatchingWeights(2.0, 5.0, 3.0))
    for b, n, k in itertools.product(range(2), range(4), range(3)):
        bce, overlap = naive_mask_cost(logits[b, n], labels[b, k])
        assert float(cross_entropy[b, n, k]) == pytest.approx(bce, rel=1e-10)
        assert float(dice[b, n, k]) == pytest.approx(overlap, rel=1e-10)
        probability = float(class_logits[b, n].softmax(0)[0])
        expected = -2 * probability + 5 * bce + 3 * overlap
        assert float(costs[b, n, k]) == pytest.approx(expected, rel=1e-10)


def test_float32_costs_are_accurate() -> None:
    """12,544 float32 terms have a mean near 5; pairs differ by far more than 1e-4."""
    logits, labels = torch.randn(1, 20, 12544) * 8, (torch.rand(1, 6, 12544) > 0.7).float()
    for narrow, wide in zip(
        mask_costs(logits, labels), mask_costs(logits.double(), labels.double()), strict=True
    ):
        torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-4)


def test_empty_masks_have_finite_costs() -> None:
    logits = torch.full((1, 2, 9), -300.0)
    logits[0, 1] = 300.0
    cross_entropy, dice = mask_costs(logits, torch.zeros(1, 1, 9))
    torch.testing.assert_close(cross_entropy[0, :, 0], torch.tensor([0.0, 300.0]))
    torch.testing.assert_close(dice[0, :, 0], torch.tensor([0.0, 0.9]))


@pytest.mark.parametrize("targets", [1, 2, 4, 5])
def test_assignment_is_the_best_of_all_permutations(targets: int) -> None:
    costs = torch.randn(6, 3, 5, targets, dtype=torch.float64)
    chosen = match(costs, torch.ones(6, targets, dtype=torch.bool))
    assert chosen.shape == (6, 3, targets)
    for b, layer in itertools.product(range(6), range(3)):
        table = costs[b, layer]
        best = min(
            itertools.permutations(range(5), targets),
            key=lambda queries: sum(float(table[q, k]) for k, q in enumerate(queries)),
        )
        assert chosen[b, layer].tolist() == list(best)


def test_result_is_the_query_of_each_target_not_the_inverse() -> None:
    """The test uses a cycle of five, because a swap is its own inverse."""
    costs = torch.ones(1, 1, 5, 5)
    for target, query in enumerate([1, 2, 3, 4, 0]):
        costs[0, 0, query, target] = 0.0
    assert match(costs, torch.ones(1, 5, dtype=torch.bool)).tolist() == [[[1, 2, 3, 4, 0]]]


def test_rows_and_layers_are_matched_independently() -> None:
    costs = torch.randn(4, 3, 6, 4)
    filled = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    together = match(costs, filled)
    for b, layer in itertools.product(range(4), range(3)):
        count = int(filled[b].sum())
        alone = match(costs[b : b + 1, layer : layer + 1, :, :count], filled[b : b + 1, :count])
        assert together[b, layer, :count].tolist() == alone[0, 0].tolist()
        assert not together[b, layer, count:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_queries_that_are_not_finite_are_matched_last(bad: float) -> None:
    costs = torch.rand(1, 1, 4, 3)
    costs[0, 0, 1] = bad
    assert sorted(match(costs, torch.ones(1, 3, dtype=torch.bool))[0, 0].tolist()) == [0, 2, 3]
    costs[:] = bad
    assert len(set(match(costs, torch.ones(1, 3, dtype=torch.bool))[0, 0].tolist())) == 3


def test_a_query_with_nan_affects_only_its_own_costs() -> None:
    logits, labels = torch.randn(1, 3, 20), (torch.rand(1, 2, 20) > 0.5).float()
    logits[0, 1] = float("nan")
    pairs = mask_costs(logits, labels)
    costs = matching_costs(torch.randn(1, 3, 2), *pairs, MatchingWeights(2, 5, 5))
    assert costs[0, [0, 2]].isfinite().all()
    assert costs[0, 1].isnan().all()


def test_the_costs_of_the_caller_do_not_change() -> None:
    costs = torch.full((1, 1, 2, 2), float("nan"), dtype=torch.float64)
    match(costs, torch.ones(1, 2, dtype=torch.bool))
    assert costs.isnan().all()


def test_no_targets_at_all() -> None:
    tubes = pack_tubes(torch.zeros(3, 4, dtype=torch.bool))
    assert tubes.objects.shape == tubes.filled.shape == (3, 0)
    assert match(torch.zeros(3, 2, 5, 0), tubes.filled).shape == (3, 2, 0)


def test_more_objects_than_queries() -> None:
    filled = torch.ones(1, 4, dtype=torch.bool)
    assert sorted(match(torch.rand(1, 1, 4, 4), filled)[0, 0].tolist()) == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"4 objects to find with 3 queries; .*num_queries"):
        match(torch.rand(1, 1, 3, 4), filled)


def test_tubes_are_packed_in_order() -> None:
    wanted = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    tubes = pack_tubes(wanted)
    assert tubes.filled.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert tubes.objects[0].tolist() == [1, 3, 4]
    assert int(tubes.objects[1, 0]) == 0


def test_a_batch_is_matched_within_milliseconds() -> None:
    """48 frames, 20 queries and 6 objects take about 4 ms, with costs at 512 points."""
    logits, labels = torch.randn(48, 20, 512), (torch.rand(48, 6, 512) > 0.5).float()
    class_logits, filled = torch.randn(48, 20, 2), torch.ones(48, 6, dtype=torch.bool)
    threads = torch.get_num_threads()
    # One thread: threads that wait for each other on a busy machine count as work.
    torch.set_num_threads(1)
    try:
        durations = []
        for _ in range(5):
            start = time.process_time()
            pairs = mask_costs(logits, labels)
            costs = matching_costs(class_logits, *pairs, MatchingWeights(2, 5, 5))
            match(costs[:, None], filled)
            durations.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(durations) < 0.02
