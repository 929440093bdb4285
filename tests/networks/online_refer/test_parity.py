"""Parity of OnlineRefer's bundles: best queries are replayed, and what is wrong is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_graphs import poison_output
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import MANIFEST, PARITY, Bundle, open_bundle
from rvos_deploy.errors import BundleError
from rvos_deploy.networks.clip_probe import clip_probe
from rvos_deploy.networks.online_refer import network
from rvos_deploy.networks.online_refer.config import preset
from rvos_deploy.networks.online_refer.contract import probe_cases
from rvos_deploy.networks.online_refer.network import OnlineRefer
from rvos_deploy.parity.verification import (
    CLIP_LOGITS,
    CLIP_ORDER,
    MaskCheck,
    ProbeMasks,
    check_masks,
    probe_masks,
    read_reference,
    verify,
)
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

NETWORK = OnlineRefer(preset("onlinerefer-tiny"))


@pytest.fixture
def copy(online_refer_bundle: Path, tmp_path: Path, resign: Callable[..., None]) -> Callable:
    """A copy of the bundle's files after a change, with hashes that fit."""

    def make(change: Callable[[Path], None]) -> Bundle:
        folder = tmp_path / "copy"
        shutil.copytree(online_refer_bundle, folder)
        change(folder)
        resign(folder)
        return open_bundle(folder)

    return make


@pytest.fixture(scope="module")
def bundle(online_refer_bundle: Path) -> Bundle:
    return open_bundle(online_refer_bundle)


def replayed(bundle: Bundle, orders: NDArray[np.int64] | None) -> ProbeMasks:
    probe = clip_probe(bundle.network, bundle.graphs)
    return probe_masks(bundle, OnnxRuntimeBackend(), probe.frames, probe.box, orders)


def test_choices_are_pytorchs_and_replaying_them_changes_nothing(bundle: Bundle) -> None:
    recorded = read_reference(bundle)[CLIP_ORDER]
    own = replayed(bundle, None)
    assert own.orders.shape == (2, 6, 1)
    assert np.array_equal(own.orders, recorded)
    assert not own.orders[:, 1:].any(), "one query from the second frame on"
    again = replayed(bundle, own.orders)
    assert np.array_equal(again.masks, own.masks)
    assert (own.excess, again.excess, again.tie) == (0, 0, "")


def another(recorded: NDArray[np.int64], query: int) -> NDArray[np.int64]:
    """The first expression starts with another query."""
    changed = recorded.copy()
    changed[0, 0, 0] = query
    return changed


def test_every_other_choice_costs_what_its_score_is_below_the_best(bundle: Bundle) -> None:
    recorded = read_reference(bundle)[CLIP_ORDER]
    own = replayed(bundle, None)
    best = int(recorded[0, 0, 0])
    others = [query for query in range(5) if query != best]
    found = {query: replayed(bundle, another(recorded, query)) for query in others}
    for one in found.values():
        assert one.excess > NETWORK.choice_excess(bundle.graphs)
        assert one.tie.startswith("near tie of the best query (expression 0, frame 0; scores ")
        assert not np.array_equal(one.masks[0], own.masks[0]), "another object is followed"
        assert np.array_equal(one.masks[1], own.masks[1]), "the other expression is not touched"


def check(bundle: Bundle, order: NDArray[np.int64]) -> MaskCheck:
    logits = read_reference(bundle)[CLIP_LOGITS]
    return check_masks(bundle, OnnxRuntimeBackend(), logits, order)


def test_a_wrong_choice_fails_and_a_near_tie_compares_own_masks(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the four other queries count as near ties here, and two as wrong choices."""
    recorded = read_reference(bundle)[CLIP_ORDER]
    others = set(range(5)) - {int(recorded[0, 0, 0])}
    excess = {query: check(bundle, another(recorded, query)).slot_excess for query in others}
    bound = float(np.median(list(excess.values())))
    assert bound > NETWORK.choice_excess(bundle.graphs)
    monkeypatch.setattr(network, "MAXIMUM_SCORE_EXCESS", bound)
    checks = {query: check(bundle, another(recorded, query)) for query in others}
    assert {query for query, one in checks.items() if one.passed} == {
        query for query in others if excess[query] <= bound
    }
    assert sum(one.passed for one in checks.values()) == 2
    assert all(one.note.startswith("near tie of the best query") for one in checks.values())
    right = check(bundle, recorded)
    assert (right.passed, right.j_and_f, right.note) == (True, 1.0, "")
    assert 0.001 < right.foreground < 0.999


OUTPUTS = [
    ("backbone", "res5"),
    ("text_encoder", "text_tokens"),
    *(
        ("frame_decoder", name)
        for name in ("scores", "best", "boxes", "next_content", "next_position", "next_box")
    ),
    ("frame_decoder", "mask_logits"),
]


@pytest.mark.parametrize(("graph", "output"), OUTPUTS)
def test_a_wrong_graph_is_seen(
    copy: Callable, monkeypatch: pytest.MonkeyPatch, graph: str, output: str
) -> None:
    monkeypatch.setattr(OnlineRefer, "probe_cases", lambda self: probe_cases(self.config)[:1])
    monkeypatch.setattr(
        "rvos_deploy.parity.verification.check_masks",
        lambda *_: MaskCheck("not of interest", True, 0, 1, 1, 0.5),
    )
    step = 1 if output == "best" else 0.01
    broken = copy(lambda folder: poison_output(folder / f"{graph}.onnx", output, step))
    failed = [result.name for result in verify(broken, OnnxRuntimeBackend()) if not result.passed]
    assert [name.split()[-1] for name in failed] == [output]


@pytest.mark.parametrize("output", ["next_box", "next_content"])
def test_a_track_that_drifts_is_seen_in_the_masks(copy: Callable, output: str) -> None:
    file = "frame_decoder.onnx"
    broken = copy(lambda folder: poison_output(folder / file, output, 0.2))
    recorded = read_reference(broken)
    found = check_masks(broken, OnnxRuntimeBackend(), recorded[CLIP_LOGITS], recorded[CLIP_ORDER])
    assert not found.passed


ORDERS = {
    "a query that is not there": np.full((2, 6, 1), 5),
    "a negative query": np.full((2, 6, 1), -1),
    "a choice after the first frame": np.ones((2, 6, 1), np.int64),
    "two queries": np.zeros((2, 6, 2), np.int64),
    "no queries": np.zeros((2, 6, 0), np.int64),
    "no numbers of queries": np.zeros((2, 6, 1), np.float32),
    "fewer frames": np.zeros((2, 5, 1), np.int64),
    "more expressions": np.zeros((3, 6, 1), np.int64),
}


@pytest.mark.parametrize("name", ORDERS)
def test_damaged_choices_are_one_line(copy: Callable, name: str) -> None:
    def change(folder: Path) -> None:
        with np.load(folder / PARITY) as file:
            arrays = {key: file[key] for key in file.files}
        np.savez(folder / PARITY, **{**arrays, CLIP_ORDER: ORDERS[name]})

    damaged = copy(change)
    with pytest.raises(BundleError, match=f"no usable '{CLIP_ORDER}', needed: ") as caught:
        read_reference(damaged)
    assert str(caught.value).isprintable()


def test_choices_that_are_some() -> None:
    first = np.zeros((2, 6, 1), np.int64)
    first[:, 0] = [[4], [2]]
    assert NETWORK.check_choices(first) is None
    assert NETWORK.check_choices(first.astype(np.int32)) is None


def test_the_manifest_states_the_family(bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["family"] == "online_refer"
    assert list(manifest["graphs"]) == ["backbone", "text_encoder", "frame_decoder"]
    assert OnlineRefer.from_dict(manifest["model"]) == NETWORK
