"""Slots, the online softmax, the token memory and the spill store."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec
from rvos_deploy.networks.pan2024.config import Initializer
from rvos_deploy.networks.pan2024.expression import EncodedSentence, ExpressionState
from rvos_deploy.networks.pan2024.query_memory import FIRST_CAPACITY, FramePlaces, QueryMemory
from rvos_deploy.networks.pan2024.slot_choices import RecordedTracker, ReplayedOrders
from rvos_deploy.networks.pan2024.slots import (
    SCORE_WEIGHT,
    SWITCH_COST,
    OnlineSoftmax,
    SlotCues,
    SlotTracker,
)
from rvos_deploy.runtime.backends.host_ops import HostOps
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
    text = EncodedSentence("", np.zeros((1, 3), np.float32), np.array([1, 2, 3], dtype=np.float32))
    return ExpressionState(text, initializer, SlotTracker())


@pytest.mark.parametrize("initializer", ["aligned", "weighted", "sentence"])
def test_an_expression_keeps_what_belongs_to_a_slot_together(initializer: Initializer) -> None:
    random, total, length = np.random.RandomState(2), 6, 5
    objects = np.eye(total, 8, dtype=np.float32)
    values = random.standard_normal((length, total, 3)).astype("f4")
    logits = random.standard_normal((length, total)).astype(np.float32)
    one, other = state(initializer), state(initializer)
    taken = []
    for t, order in enumerate(orders(length, total, seed=3)):
        given = (values[t], logits[t])
        expected = np.argsort(order) if initializer == "aligned" else np.arange(total)
        found = one.advance(*given, cues(objects, order))
        assert (found == expected).all()
        # Slots are each expression's own.
        assert (other.advance(*given, cues(objects, np.arange(total))) == np.arange(total)).all()
        taken.append(expected)
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


def places(window: int | None, anchors: int, frames: int) -> list[int]:
    """Numbers of the frames that are kept after so many, oldest first; checks every frame's place
    on the way.
    """
    policy, shown = FramePlaces(window, anchors), dict[int, int]()
    for number in range(frames):
        place = policy.append()
        shown[place] = number
        capacity = max(shown) + 1
        if window is not None:
            assert capacity <= window + anchors
        ages, empty = policy.ages(capacity)
        kept = [shown[p] for p in range(capacity) if not empty[p]]
        assert number in kept
        assert ages[~empty].tolist() == [number - n for n in kept]
        assert len(policy) == len(kept)
    return sorted(kept)


def test_memory_keeps_the_window_with_ages() -> None:
    assert places(3, 0, 10) == [7, 8, 9]
    assert places(1, 0, 4) == [3]
    assert places(5, 2, 3) == [0, 1, 2]


def test_anchors_are_spread_evenly_and_few() -> None:
    kept = places(4, 5, 1000)
    assert len(kept) <= 9
    assert kept[-4:] == [996, 997, 998, 999]
    anchors = kept[:-4]
    assert len(anchors) >= 3
    assert len(set(np.diff(anchors).tolist())) == 1


def test_unlimited_memory_keeps_everything() -> None:
    assert places(None, 0, 100) == list(range(100))


AXIS = AxisSpec("M", 1, 256)


def query(number: int, expressions: int = 1) -> NDArray[np.float32]:
    """Frame queries [E,2,3]; of expression e in frame t: 100 e + t."""
    rows = 100 * np.arange(expressions, dtype=np.float32) + number
    return np.tile(rows[:, None, None], (1, 2, 3))


def read(memory: QueryMemory) -> list[dict[int, int]]:
    """Value by age of every expression; empty places must hold age 0."""
    told = {name: np.asarray(value) for name, value in memory.read().items()}
    tokens, ages, empty = (told[n] for n in ("memory", "memory_ages", "memory_empty"))
    assert tokens.shape[:2] == ages.shape == empty.shape
    assert (ages.dtype, empty.dtype) == (np.float32, np.bool_)
    assert (tokens == tokens[:, :, :1, :1]).all()
    return [
        {int(age): int(token[0, 0]) for token, age, hidden in zip(*row, strict=True) if not hidden}
        for row in zip(tokens, ages, empty, strict=True)
    ]


def test_the_ring_has_one_shape_and_one_address_online() -> None:
    memory = QueryMemory(HostOps(), AXIS, window=4, anchors=2)
    seen = set()
    for t in range(20):
        memory.append((7, 9), query(t, 2))
        tensor = np.asarray(memory.read()["memory"])
        seen.add((tensor.shape, tensor.__array_interface__["data"][0]))
        one, other = read(memory)
        assert list(one) == list(other)
        assert all(one[age] == t - age and other[age] == 100 + t - age for age in one)
        assert {age for age in one if age < 4} == set(range(min(4, t + 1)))
    assert [shape for shape, _ in seen] == [(2, 6, 2, 3)]


def test_expressions_come_and_go_with_their_own_frames() -> None:
    memory = QueryMemory(HostOps(), AXIS, window=3)
    memory.append((0,), query(0))
    memory.append((0, 1), query(1, 2))
    assert read(memory) == [{0: 1, 1: 0}, {0: 101}]
    memory.append((0, 1, 2), query(2, 3))
    assert memory.numbers == (0, 1, 2)
    memory.remove(1)
    assert memory.numbers == (0, 2)
    assert read(memory) == [{0: 2, 1: 1, 2: 0}, {0: 202}]
    memory.append((0, 2, 5), query(3, 3))
    assert read(memory) == [{0: 3, 1: 2, 2: 1}, {0: 103, 1: 202}, {0: 203}]
    memory.remove(0)
    memory.append((2, 5), query(4, 2))
    assert read(memory) == [{0: 4, 1: 103, 2: 202}, {0: 104, 1: 203}]


def test_memory_doubles_offline_up_to_what_the_decoder_reads() -> None:
    memory = QueryMemory(HostOps(), AxisSpec("M", 1, 21), window=None)
    sizes = []
    for t in range(20):
        memory.append((0,), query(t))
        assert memory._tensor is not None
        sizes.append(memory._tensor.shape[1])
        # The decoder reads no spare places: an engine's profile may end at the clip's length.
        assert memory.read()["memory"].shape[1] == t + 1
        assert read(memory) == [{t - n: n for n in range(t + 1)}]
    assert sorted(set(sizes)) == [FIRST_CAPACITY, 2 * FIRST_CAPACITY, 21]


def test_memory_keeps_the_type_of_the_graphs() -> None:
    memory = QueryMemory(HostOps(), AXIS, window=2)
    memory.append((0,), query(1).astype(np.float16))
    assert memory.read()["memory"].dtype == np.float16


@pytest.mark.parametrize("budget", [0, 100, 10**6])
def test_store_gives_back_what_it_took_in_any_order(budget: int) -> None:
    random = np.random.default_rng(1)
    shapes = [(3, 5), (7,), (2, 2, 2), (1,)] * 5
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    with SpillStore(budget) as store:
        numbers = [store.put(array) for array in arrays]
        assert store.bytes_in_memory <= budget
        for position in random.permutation(len(arrays)):
            assert (store.pop(numbers[position]) == arrays[position]).all()
        assert store.bytes_in_memory == 0
        assert len(store) == 0


def test_room_on_disk_is_used_again() -> None:
    with SpillStore(0) as store:
        for _ in range(100):
            store.pop(store.put(np.ones(1000, dtype=np.float32)))
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
    np.testing.assert_array_equal(tracker.chosen, chosen)
    replay = ReplayedOrders(chosen)
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
    replay = ReplayedOrders(np.array([[0, 1], [1, 0]]))
    replayed = SlotTracker(replay)
    replayed.advance(first)
    assert replayed.advance(second).tolist() == [1, 0]
    # 0.4 of a tenth of doubt, and each of two slots changed its query.
    assert replay.excess == pytest.approx(SCORE_WEIGHT * 0.1 + 2 * SWITCH_COST, abs=1e-6)
    assert replay.tie == (1, (0, 1))
