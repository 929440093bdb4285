"""Slot alignment: cycles, chains, numbers that are none, ties, and gradients through it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_deploy.model.slot_alignment import align_slots, gather_slots
from rvos_deploy.runtime import slots as slots_module
from rvos_deploy.runtime.slots import assign_slots


def test_a_five_cycle_is_undone() -> None:
    """A swap is its own inverse and hides the published mistake; a cycle of five is not."""
    objects = torch.eye(5) + 0.1 * torch.randn(5, 5)
    cycle = torch.tensor([1, 2, 3, 4, 0])
    clip = torch.stack([objects, objects[cycle], objects[cycle][cycle]])[None]
    order = align_slots(clip)
    assert order.dtype == torch.int64
    assert order[0].tolist() == [[0, 1, 2, 3, 4], [4, 0, 1, 2, 3], [3, 4, 0, 1, 2]]
    aligned = gather_slots(clip, order)
    assert torch.equal(aligned, objects.expand(1, 3, 5, 5))
    # The premise: the inverse would not do.
    inverse = order.argsort(dim=-1)
    assert not torch.equal(gather_slots(clip, inverse)[0, 1], objects)


def test_every_clip_and_frame_has_its_own_permutation() -> None:
    objects = torch.randn(3, 20, 16)
    order = torch.stack([torch.stack([torch.randperm(20) for _ in range(6)]) for _ in range(3)])
    clip = gather_slots(objects[:, None].expand(3, 6, 20, 16), order)
    aligned = gather_slots(clip, align_slots(clip))
    # The first frame's order is kept, whatever it was.
    assert torch.equal(aligned, clip[:, :1].expand_as(clip))


def test_frames_are_aligned_to_the_frame_before_not_to_the_first() -> None:
    """Five directions, 72 degrees apart, all turn by 30 a frame: after two frames every one of
    them is nearer to the place where its neighbour started."""
    angles = torch.arange(5) * (2 * math.pi / 5) + torch.arange(6)[:, None] * math.radians(30)
    turning = torch.stack((angles.cos(), angles.sin()), dim=-1)
    shuffled = gather_slots(
        turning[None], torch.stack([torch.arange(5), *(torch.randperm(5) for _ in range(5))])[None]
    )
    aligned = gather_slots(shuffled, align_slots(shuffled))
    assert torch.equal(aligned[0], turning)


def test_the_assignment_is_optimal_not_greedy() -> None:
    random = np.random.RandomState(0)
    for _ in range(20):
        previous = random.standard_normal((5, 4)).astype(np.float32)
        current = random.standard_normal((5, 4)).astype(np.float32) * random.uniform(0.1, 9, (5, 1))
        similarity = np.array(
            [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in current] for a in previous]
        )
        best = max(
            itertools.permutations(range(5)),
            key=lambda p: sum(similarity[i, p[i]] for i in range(5)),
        )
        assert assign_slots(previous, current.astype(np.float32)).tolist() == list(best)


def test_length_does_not_matter_only_direction() -> None:
    objects = torch.randn(1, 1, 8, 16)
    clip = torch.cat([objects, objects.flip(2) * torch.logspace(-6, 6, 8)[:, None]], dim=1)
    assert align_slots(clip)[0, 1].tolist() == list(range(7, -1, -1))


def test_zero_and_endless_vectors_cost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[NDArray[np.float64]] = []
    solve = slots_module.linear_sum_assignment

    def spy(cost: NDArray[np.float64]) -> object:
        costs.append(cost)
        return solve(cost)

    monkeypatch.setattr(slots_module, "linear_sum_assignment", spy)
    previous = np.array([[1, 0], [0, 0], [0, 2]], dtype=np.float32)
    current = np.array([[np.nan, 1], [0, 1], [np.inf, 0]], dtype=np.float32)
    permutation = assign_slots(previous, current)
    assert costs[0].tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 1]]
    assert permutation[2] == 1
    assert sorted(permutation) == [0, 1, 2]


def test_broken_frames_pass_and_the_clip_goes_on() -> None:
    clip = torch.randn(1, 4, 6, 8)
    clip[0, 1, 2] = torch.nan
    clip[0, 2] = 0.0
    order = align_slots(clip)
    assert torch.equal(order.sort(dim=-1).values, torch.arange(6).expand(1, 4, 6))


def test_one_frame_is_left_as_it_is() -> None:
    clip = torch.randn(2, 1, 7, 4)
    order = align_slots(clip)
    assert torch.equal(order, torch.arange(7).expand(2, 1, 7))
    assert torch.equal(gather_slots(clip, order), clip)


@pytest.mark.parametrize(
    "clip",
    [
        torch.ones(1, 3, 6, 4),
        torch.zeros(1, 3, 6, 4),
        torch.eye(6)[[0, 0, 1, 1, 2, 2]].expand(1, 3, 6, 6),
    ],
    ids=["all equal", "all zero", "pairs"],
)
def test_ties_resolve_the_same_way_every_time(clip: Tensor) -> None:
    order = align_slots(clip)
    for _ in range(5):
        assert torch.equal(align_slots(clip.clone()), order)
    aligned = gather_slots(clip, order)
    assert torch.equal(aligned, clip)


def test_the_order_is_detached_and_gradients_flow_through_the_gathering() -> None:
    clip = torch.randn(2, 3, 5, 4, requires_grad=True)
    order = align_slots(clip)
    assert not order.requires_grad
    weights = torch.randn(2, 3, 5, 4)
    (gather_slots(clip, order) * weights).sum().backward()
    expected = torch.zeros_like(weights)
    for b, t, n in itertools.product(range(2), range(3), range(5)):
        expected[b, t, order[b, t, n]] = weights[b, t, n]
    assert clip.grad is not None
    assert torch.equal(clip.grad, expected)


def test_gathering_takes_any_number_of_axes_after_the_slots() -> None:
    order = torch.stack([torch.randperm(5) for _ in range(6)]).view(2, 3, 5)
    for tail in ((), (4,), (2, 3)):
        values = torch.randn(2, 3, 5, *tail)
        gathered = gather_slots(values, order)
        for b, t, n in itertools.product(range(2), range(3), range(5)):
            assert torch.equal(gathered[b, t, n], values[b, t, order[b, t, n]])


def test_half_precision_queries_align_like_wide_ones() -> None:
    objects = torch.randn(1, 1, 8, 16)
    clip = torch.cat([objects, objects[:, :, torch.randperm(8)]], dim=1)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(align_slots(clip.to(dtype)), align_slots(clip))
