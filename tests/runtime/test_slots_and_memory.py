"""Slot assignment, the online softmax, the token memory and the spill store."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.slots import OnlineSoftmax, assign_slots
from rvos_deploy.runtime.spill_store import SpillStore
from rvos_deploy.runtime.token_memory import TokenMemory


def test_a_five_cycle_is_undone_and_not_doubled() -> None:
    previous = np.eye(5, 8, dtype=np.float32)
    current = previous[[1, 2, 3, 4, 0]]
    order = assign_slots(previous, current)
    assert (current[order] == previous).all()
    assert (current[np.argsort(order)] != previous).any(), "the inverse must not pass this test"


def test_vectors_without_direction_cost_one_and_ties_are_stable() -> None:
    previous = np.array([[0, 0], [1, 0], [np.nan, 1]], dtype=np.float32)
    current = np.array([[1, 0], [0, 0], [0, np.inf]], dtype=np.float32)
    order = assign_slots(previous, current)
    assert sorted(order) == [0, 1, 2]
    assert order[1] == 0
    same = np.ones((6, 3), dtype=np.float32)
    assert (assign_slots(same, same) == assign_slots(same.copy(), same.copy())).all()


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
    assert tokens[:, 0, 0].tolist() == [2, 3, 4]
    assert ages.tolist() == [2, 1, 0]


def test_anchors_are_bounded_spread_and_older_than_the_window() -> None:
    memory = TokenMemory(window=4, anchors=5)
    for number in range(1000):
        memory.append(token(number))
        assert len(memory) <= 9
    tokens, ages = memory.read()
    kept = tokens[:, 0, 0]
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
        "from rvos_deploy.runtime.spill_store import SpillStore\n"
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
