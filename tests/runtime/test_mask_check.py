"""The verdict on a clip's masks: what counts as undecided, and what that excuses."""

from __future__ import annotations

import numpy as np

from rvos_deploy.runtime.verification import MAXIMUM_UNDECIDED, judge_masks


def squares() -> np.ndarray:
    """Masks bool [1,2,40,50] with a square in each."""
    masks = np.zeros((1, 2, 40, 50), dtype=np.bool_)
    masks[:, :, 10:30, 12:40] = True
    return masks


def test_undecided_pixels_are_not_compared_and_are_counted() -> None:
    truth, found = squares(), squares()
    undecided = np.zeros_like(truth)
    found[0, 0, 10, 12:20] = False
    undecided[0, 0, 10, 12:20] = True
    assert not judge_masks("all compared", truth, found).passed
    check = judge_masks("but undecided", truth, found, undecided)
    assert check.passed
    assert check.j_and_f == 1.0
    assert check.undecided == 8 / truth.size
    assert check.as_dict()["undecided"] == check.undecided


def test_a_decided_difference_fails_beside_undecided_pixels() -> None:
    truth, found = squares(), squares()
    found[0, 1, :20] = False
    undecided = np.zeros_like(truth)
    undecided[0, 0, 10, 12:20] = True
    assert not judge_masks("wrong", truth, found, undecided).passed


def test_masks_that_are_mostly_undecided_prove_nothing() -> None:
    truth = squares()
    undecided = np.zeros_like(truth)
    undecided[0, 0, :2] = True
    assert undecided.mean() > MAXIMUM_UNDECIDED
    check = judge_masks("nothing proved", truth, truth, undecided)
    assert check.j_and_f == 1.0
    assert not check.passed
