"""The verdict on a clip's masks: what counts as undecided, and what that excuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import UNSET

from rvos_deploy.runtime import verification
from rvos_deploy.runtime.geometry import display_mask, fit_frame
from rvos_deploy.runtime.graph_spec import GraphSpec
from rvos_deploy.runtime.probe import PROBE_BOX
from rvos_deploy.runtime.verification import (
    MAXIMUM_UNDECIDED,
    ProbeMasks,
    check_masks,
    judge_masks,
)


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


def test_the_minimum_is_the_bundles_and_is_recorded() -> None:
    truth, found = squares(), squares()
    found[0, 0, 10:12] = False
    assert not judge_masks("by default", truth, found).passed
    check = judge_masks("as exported", truth, found, minimum=0.9)
    assert check.passed
    assert check.as_dict()["tolerance"] == 0.9


@pytest.mark.parametrize(("excess", "passed"), [(0.0, True), (0.159, True), (0.161, False)])
def test_slots_that_only_rounding_explains_pass(
    monkeypatch: pytest.MonkeyPatch, excess: float, passed: bool
) -> None:
    """At a tolerance of 1e-2: 16 times as much."""
    logits = np.full((1, 6, 24, 40), -9.0, np.float32)
    logits[:, :, 4:12, 8:20] = 9.0
    geometry = fit_frame((90, 157), PROBE_BOX)
    masks = np.stack([[display_mask(m, geometry) for m in maps] for maps in logits])
    order = np.zeros((1, 6, 20), np.int64)

    def probe(bundle, backend, clip, box, orders):  # type: ignore[no-untyped-def]
        assert orders is order
        return ProbeMasks(masks, orders, excess)

    monkeypatch.setattr(verification, "probe_masks", probe)
    graph = GraphSpec("frame_decoder", (), (), (), 1e-2)
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(parity=SimpleNamespace(minimum_j_and_f=UNSET)),
        graphs={"frame_decoder": graph},
        precision="fp16",
    )
    check = check_masks(bundle, None, logits, order)  # type: ignore[arg-type]
    assert (check.j_and_f, check.slot_excess, check.passed) == (1.0, excess, passed)
