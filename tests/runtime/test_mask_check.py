"""The result on a clip's masks: what counts as undecided, and what that excuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import UNSET

from rvos_deploy.graph_io.frame_geometry import letterbox, upsample_mask
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.network import MAXIMUM_SLOT_EXCESS, Pan2024
from rvos_deploy.parity import verification
from rvos_deploy.parity.verification import (
    MAXIMUM_UNDECIDED,
    MINIMUM_J_AND_F,
    MINIMUM_J_AND_F_LOWER,
    MaskCheck,
    ProbeMasks,
    check_masks,
    score_masks,
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
    assert not score_masks("all compared", truth, found).passed
    check = score_masks("but undecided", truth, found, undecided)
    assert check.passed
    assert check.j_and_f == 1.0
    assert check.undecided == 8 / truth.size
    assert check.as_dict()["undecided"] == check.undecided


def test_a_decided_difference_fails_beside_undecided_pixels() -> None:
    truth, found = squares(), squares()
    found[0, 1, :20] = False
    undecided = np.zeros_like(truth)
    undecided[0, 0, 10, 12:20] = True
    assert not score_masks("wrong", truth, found, undecided).passed


def test_masks_that_are_mostly_undecided_prove_nothing() -> None:
    truth = squares()
    undecided = np.zeros_like(truth)
    undecided[0, 0, :2] = True
    assert undecided.mean() > MAXIMUM_UNDECIDED
    check = score_masks("nothing proved", truth, truth, undecided)
    assert check.j_and_f == 1.0
    assert not check.passed


def test_the_minimum_is_the_bundles_and_is_recorded() -> None:
    truth, found = squares(), squares()
    found[0, 0, 10:12] = False
    assert not score_masks("by default", truth, found).passed
    check = score_masks("as exported", truth, found, minimum=0.9)
    assert check.passed
    assert check.as_dict()["tolerance"] == 0.9


Probe = Callable[..., MaskCheck]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Checks masks of which replayed slots, and own ones, are right or not; of a fp16 bundle."""
    logits = np.full((1, 6, 24, 40), -9.0, np.float32)
    logits[:, :, 4:12, 8:20] = 9.0
    geometry = letterbox((90, 157), PROBE_BOX)
    masks = np.stack([[upsample_mask(m, geometry) for m in maps] for maps in logits])
    order = np.zeros((1, 6, 20), np.int64)
    graph = GraphSpec("frame_decoder", (), (), (), 1e-2)
    network = Pan2024(preset("tiny"))

    def check(
        excess: float,
        *,
        replayed: bool = True,
        own: bool = False,
        accepted: float | None = None,
        computed: GraphSpec | None = None,
    ) -> MaskCheck:
        def run(bundle, backend, clip, box, orders=None):  # type: ignore[no-untyped-def]
            right = own if orders is None else replayed
            tie = "near tie at slot 3" if excess and orders is not None else ""
            return ProbeMasks(masks if right else ~masks, order, excess if tie else 0.0, tie)

        monkeypatch.setattr(verification, "probe_masks", run)
        bundle = SimpleNamespace(
            manifest=SimpleNamespace(
                parity=SimpleNamespace(minimum_j_and_f=UNSET, maximum_slot_excess=accepted)
            ),
            graphs=dict.fromkeys(network.frame_graphs, graph),
            precision="fp16",
            network=network,
        )
        specs = None if computed is None else {**bundle.graphs, "frame_decoder": computed}
        return check_masks(bundle, None, logits, order, specs)  # type: ignore[arg-type]

    return check


@pytest.mark.parametrize(("excess", "passed"), [(0.0, True), (0.159, True), (0.161, False)])
def test_slots_that_only_rounding_explains_pass(probe: Probe, excess: float, passed: bool) -> None:
    """At a tolerance of 1e-2: 16 times as much."""
    check = probe(excess)
    assert (check.j_and_f, check.slot_excess, check.passed) == (1.0, excess, passed)
    assert check.allowed_excess == pytest.approx(0.16)
    # Who reads it learns that there was a tie, and what was compared.
    assert check.note == ("near tie at slot 3: masks compared with PyTorch's choice" * bool(excess))
    assert check.as_dict()["note"] == check.note


def test_where_slots_are_nearly_tied_what_the_tie_decides_is_compared(probe: Probe) -> None:
    check = probe(0.3, own=True)
    assert check.passed
    assert check.slot_excess == 0.3
    assert check.note == "near tie at slot 3: masks by own choices compared instead"
    # Even where the replayed ones are wrong, as they are when a choice does not fit.
    assert probe(0.3, replayed=False, own=True).passed


def test_another_object_is_no_tie(probe: Probe) -> None:
    assert not probe(MAXIMUM_SLOT_EXCESS + 0.01, own=True).passed
    assert not probe(0.1, replayed=False, own=True).passed


def test_limits_are_lower_only_where_a_graph_is_computed_in_a_lower_precision(
    probe: Probe,
) -> None:
    own = GraphSpec("frame_decoder", (), (), (), 1e-2)
    lower = GraphSpec("frame_decoder", (), (), (), 0.13, "bf16")
    # A query that rounding moves takes the cost of its slot along, however high.
    moved = MAXIMUM_SLOT_EXCESS + 1
    assert probe(moved, computed=lower).passed
    assert not probe(moved, computed=own).passed
    assert probe(0.0, computed=own).tolerance == MINIMUM_J_AND_F
    assert probe(0.0, computed=lower).tolerance == MINIMUM_J_AND_F_LOWER
    assert not probe(0.0, replayed=False, computed=lower).passed, "wrong masks pass"


@pytest.mark.parametrize(("accepted", "passed"), [(0.29, False), (0.31, True)])
def test_a_stated_excess_is_accepted(probe: Probe, accepted: float, passed: bool) -> None:
    check = probe(0.3, accepted=accepted)
    assert (check.passed, check.allowed_excess) == (passed, accepted)
    assert not probe(0.3, accepted=accepted, replayed=False).passed
