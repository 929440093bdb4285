"""Slots, the online softmax, the token memory and the spill store."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import Initializer
from rvos_deploy.networks.pan2024.expression import EncodedText, ExpressionState
from rvos_deploy.networks.pan2024.slots import (
    CHANGED,
    DOUBTFUL,
    OnlineSoftmax,
    RecordedTracker,
    Replay,
    SlotCues,
    SlotTracker,
)
from rvos_deploy.networks.pan2024.token_memory import TokenMemory
from rvos_deploy.spill_store import SpillStore


def cues(objects: NDArray[np.float32], order: NDArray[np.int64]) -> SlotCues:
    """N masks on a diagonal, object ``order[n]`` at query n; contents tell them apart as well."""
    total = len(objects)
    position = np.full((total, 5), 0.2, dtype=np.float32)
    position[:, :2] = np.linspace(-0.8, 0.8, total, dtype=np.float32)[:, None]
    return SlotCues(position[order], objects[order], np.full(total, 0.9, dtype=np.float32))


def orders(frames: int, slots: int, seed: int) -> list[NDArray[np.int64]]:
    """A permutation a frame, the first in place."""
    random = np.random.RandomState(seed)
    return [np.arange(slots), *(random.permutation(slots) for _ in range(frames - 1))]


def test_a_five_cycle_is_undone_and_not_doubled() -> None:
    objects, cycle = np.eye(5, 8, dtype=np.float32), np.array([1, 2, 3, 4, 0])
    tracker = SlotTracker()
    assert (tracker.advance(cues(objects, np.arange(5))) == np.arange(5)).all()
    first, second = (tracker.advance(cues(objects, c)) for c in (cycle, cycle[cycle]))
    assert (cycle[first] == np.arange(5)).all()
    assert (cycle[cycle][second] == np.arange(5)).all()
    assert (cycle[np.argsort(first)] != np.arange(5)).any(), "the inverse must not pass this test"


def test_a_tracker_keeps_no_hold_of_what_it_was_given() -> None:
    """The stream's arrays may be a runner's own buffers, which the next frame overwrites."""
    objects, tracker = np.eye(5, 8, dtype=np.float32), SlotTracker()
    for order in orders(4, 5, seed=0):
        given = cues(objects, order)
        assert (order[tracker.advance(given)] == np.arange(5)).all()
        for array in given:
            array[:] = 7


@pytest.mark.filterwarnings("error")
def test_an_overflow_of_half_precision_passes() -> None:
    """Looks alone tell: where one query's contents overflow, those of all are remembered."""
    objects, tracker = np.eye(5, 8, dtype=np.float32), SlotTracker()
    for t, order in enumerate(orders(4, 5, seed=1)):
        given = cues(objects, order)
        given.position[:, :2] = 0
        if t == 1:
            given.content[order == 2, :3] = np.inf
        followed = order[tracker.advance(given)]
        assert (followed == np.arange(5)).all()


def state(initializer: Initializer) -> ExpressionState:
    text = EncodedText("", np.zeros((1, 3), np.float32), np.array([1, 2, 3], dtype=np.float32))
    return ExpressionState(0, text, initializer, TokenMemory(window=None), SlotTracker())


@pytest.mark.parametrize("initializer", ["aligned", "weighted", "sentence"])
def test_an_expression_keeps_what_belongs_to_a_slot_together(initializer: Initializer) -> None:
    random, total, length = np.random.RandomState(2), 6, 5
    objects = np.eye(total, 8, dtype=np.float32)
    queries, values = (random.standard_normal((length, total, 3)).astype("f4") for _ in range(2))
    logits = random.standard_normal((length, total)).astype(np.float32)
    one, other = state(initializer), state(initializer)
    taken = []
    for t, order in enumerate(orders(length, total, seed=3)):
        given = (values[t], logits[t])
        expected = np.argsort(order) if initializer == "aligned" else np.arange(total)
        found = one.advance(*given, cues(objects, order))
        assert (found == expected).all()
        one.memory.append(queries[t][found])
        # Slots are each expression's own.
        assert (other.advance(*given, cues(objects, np.arange(total))) == np.arange(total)).all()
        taken.append(expected)
    tokens, _ = one.memory.read()
    assert (
        np.stack(tokens) == np.stack([q[order] for q, order in zip(queries, taken, strict=True)])
    ).all()
    start = one.initial_video_queries()
    if initializer == "sentence":
        assert (start == np.array([1, 2, 3])).all()
        return
    of_slots = np.stack([v[order] for v, order in zip(values, taken, strict=True)])
    weights = np.exp(np.stack([x[order] for x, order in zip(logits, taken, strict=True)]))
    expected_start = (weights[..., None] * of_slots).sum(axis=0) / weights.sum(axis=0)[:, None]
    # Float32 exponentials and sums here, float64 there.
    np.testing.assert_allclose(start, expected_start, atol=1e-6)


def test_online_softmax_equals_softmax_even_with_huge_logits() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((50, 4, 3)).astype(np.float32)
    logits = (random.standard_normal((50, 4)) * 300).astype(np.float32)
    running = OnlineSoftmax()
    for t in range(50):
        running.update(values[t], logits[t])
        wide = logits[: t + 1].astype(np.float64)
        weights = np.exp(wide - wide.max(axis=0))
        weights /= weights.sum(axis=0)
        expected = (weights[..., None] * values[: t + 1]).sum(axis=0)
        np.testing.assert_allclose(running.mean(), expected, atol=1e-6)


def token(number: int) -> np.ndarray:
    return np.full((2, 3), number, dtype=np.float32)


def test_memory_keeps_the_window_with_ages() -> None:
    memory = TokenMemory(window=3)
    for number in range(5):
        memory.append(token(number))
    tokens, ages = memory.read()
    assert np.stack(tokens)[:, 0, 0].tolist() == [2, 3, 4]
    assert ages.tolist() == [2, 1, 0]


def test_anchors_are_bounded_spread_and_older_than_the_window() -> None:
    memory = TokenMemory(window=4, anchors=5)
    for number in range(1000):
        memory.append(token(number))
        assert len(memory) <= 9
    tokens, ages = memory.read()
    kept = np.stack(tokens)[:, 0, 0]
    assert kept[-4:].tolist() == [996, 997, 998, 999]
    anchors = kept[:-4]
    assert len(anchors) >= 3
    assert len(set(np.diff(anchors).tolist())) == 1
    assert (ages == 999 - kept).all()


def test_unlimited_memory_keeps_everything() -> None:
    memory = TokenMemory(window=None)
    for number in range(100):
        memory.append(token(number))
    assert len(memory) == 100


@pytest.mark.parametrize("budget", [0, 100, 10**6])
def test_store_gives_back_what_it_took_in_any_order(budget: int) -> None:
    random = np.random.default_rng(1)
    shapes = [(3, 5), (7,), (2, 2, 2), (1,)] * 5
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    with SpillStore(budget) as store:
        numbers = [store.put(array) for array in arrays]
        assert store.bytes_in_memory <= budget
        for position in random.permutation(len(arrays)):
            assert (store.take(numbers[position]) == arrays[position]).all()
        assert store.bytes_in_memory == 0
        assert len(store) == 0


def test_room_on_disk_is_used_again() -> None:
    with SpillStore(0) as store:
        for _ in range(100):
            store.take(store.put(np.ones(1000, dtype=np.float32)))
        assert store.bytes_on_disk == 4000


def test_a_full_disk_is_an_error_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with SpillStore(0) as store, pytest.raises(InputError, match="TMPDIR"):
        store.put(np.ones(10))


def test_the_spill_file_does_not_outlive_a_killed_process(tmp_path) -> None:  # type: ignore[no-untyped-def]
    code = (
        "import numpy as np, os, signal\n"
        "from rvos_deploy.spill_store import SpillStore\n"
        "store = SpillStore(0)\n"
        "store.put(np.ones(100000))\n"
        "assert store.bytes_on_disk\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={"TMPDIR": str(tmp_path), "PATH": ""}, check=False
    )
    assert result.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_replayed_choice_of_its_own_costs_nothing_more() -> None:
    objects, frames = np.eye(4, 8, dtype=np.float32), orders(5, 4, seed=2)
    tracker = RecordedTracker(SlotTracker())
    chosen = np.stack([tracker.advance(cues(objects, order)) for order in frames])
    plain = SlotTracker()
    np.testing.assert_array_equal([plain.advance(cues(objects, o)) for o in frames], chosen)
    np.testing.assert_array_equal(tracker.orders, chosen)
    replay = Replay(chosen)
    replayed = SlotTracker(replay)
    again = [replayed.advance(cues(objects, order)) for order in frames]
    np.testing.assert_array_equal(again, chosen)
    assert replay.excess == 0.0
    assert replay.tie is None


def test_a_replayed_choice_is_followed_and_its_excess_is_the_cost() -> None:
    """Two queries at one place with one content: taking the less sure costs its doubt, and no more.

    Slot 0 begins with query 0, of score 0.9; in the second frame query 1 lies there as well, with
    0.8, and the record took it for slot 0. What slot 1 never held costs nothing.
    """
    position = np.full((2, 5), 0.2, dtype=np.float32)
    content = np.eye(2, 8, dtype=np.float32)
    first = SlotCues(
        np.array([[0, 0, 0.2, 0.2, 0.2], [0, 0, 0, 0, 0]], np.float32),
        content,
        np.array([0.9, 0.1], np.float32),
    )
    position[:, :2] = 0.0
    second = SlotCues(position, np.tile(content[:1], (2, 1)), np.array([0.9, 0.8], np.float32))
    tracker = SlotTracker()
    assert tracker.advance(first).tolist() == [0, 1]
    assert tracker.advance(second).tolist() == [0, 1]
    replay = Replay(np.array([[0, 1], [1, 0]]))
    replayed = SlotTracker(replay)
    replayed.advance(first)
    assert replayed.advance(second).tolist() == [1, 0]
    # 0.4 of a tenth of doubt, and each of two slots changed its query.
    assert replay.excess == pytest.approx(DOUBTFUL * 0.1 + 2 * CHANGED, abs=1e-6)
    assert replay.tie == (1, (0, 1))
