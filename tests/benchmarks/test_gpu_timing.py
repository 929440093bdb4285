"""Test how launches are timed, on a stand-in of ``torch.cuda`` with a clock."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest
import torch
from recording_torch import RecordingTorchCuda

from rvos_deploy.benchmarks.gpu_timing import (
    SPIN_CYCLES,
    WARM_UP,
    Contender,
    LaunchTimer,
    LaunchTimes,
)
from rvos_deploy.benchmarks.rounds import in_turn, make_each, spread_of
from rvos_deploy.errors import BackendError


def test_the_stand_in_has_the_names_of_torch() -> None:
    """A name or an argument that PyTorch lacks would be found on a GPU only."""
    cuda = RecordingTorchCuda()
    for name in ("graph", "stream", "synchronize", "_sleep"):
        assert hasattr(torch.cuda, name)
    assert {"cuda_graph", "pool", "stream"} <= set(inspect.signature(torch.cuda.graph).parameters)
    assert "enable_timing" in inspect.signature(torch.cuda.Event.__new__).parameters
    for kind, names in {
        torch.cuda.Event: ("record", "query", "elapsed_time"),
        torch.cuda.CUDAGraph: ("replay",),
        torch.cuda.Stream: ("cuda_stream",),
    }.items():
        for name in names:
            assert hasattr(kind, name), (kind, name)
            assert hasattr(cuda, kind.__name__)


def test_a_captured_batch_measures_the_gpu_and_not_the_host() -> None:
    cuda = RecordingTorchCuda(host_us=20.0)
    timer = LaunchTimer(cuda, cuda.flush)
    times = timer.measure(timer.prepare(Contender(cuda.kernel("a", 5.0, 12.0))))
    assert times == LaunchTimes(pytest.approx(0.005), pytest.approx(0.012))


def test_a_spin_kernel_hides_the_host_from_what_cannot_be_captured() -> None:
    cuda = RecordingTorchCuda(host_us=20.0)
    timer = LaunchTimer(cuda, cuda.flush)
    prepared = timer.prepare(Contender(cuda.kernel("a", 5.0, 12.0), captured=False))
    cuda.log.clear()
    times = timer.measure(prepared)
    assert times == LaunchTimes(pytest.approx(0.005), pytest.approx(0.012))
    assert cuda.log[:3] == ["spin", "a", "a"]


def test_a_spin_that_is_too_short_is_made_longer() -> None:
    # 100 launches take 40 ms on this host, and the first spin takes 0.2 ms.
    cuda = RecordingTorchCuda(host_us=400.0)
    timer = LaunchTimer(cuda, cuda.flush)
    prepared = timer.prepare(Contender(cuda.kernel("a", 5.0, 12.0), captured=False))
    assert SPIN_CYCLES / 1e3 < 100 * 400.0
    assert timer.measure(prepared).warm == pytest.approx(0.005)
    slow = RecordingTorchCuda(host_us=1e5)
    timer = LaunchTimer(slow, slow.flush)
    with pytest.raises(BackendError, match=r"longer to queue the launches than the GPU spins"):
        timer.measure(timer.prepare(Contender(slow.kernel("a", 5.0, 12.0), captured=False)))


def test_the_order_of_launches_in_the_captured_graphs() -> None:
    cuda = RecordingTorchCuda()
    timer = LaunchTimer(cuda, cuda.flush, launches=3)
    prepared = timer.prepare(Contender(cuda.kernel("a", 5.0, 12.0)))
    assert cuda.log == ["flush"] * WARM_UP + ["a"] * WARM_UP, "captures run nothing"
    cuda.log.clear()
    timer.measure(prepared)
    # Each batch runs twice, and the second run is timed.
    warm, flushed, flushes = ["a"] * 3, ["flush", "a"] * 3, ["flush"] * 3
    spins = [["spin", *batch] for batch in (warm, warm, flushed, flushed, flushes, flushes)]
    assert cuda.log == [name for batch in spins for name in batch]


def test_a_contender_that_cannot_be_made_or_fails_does_not_stop_the_others() -> None:
    cuda = RecordingTorchCuda()
    timer = LaunchTimer(cuda, cuda.flush, launches=2)

    def absent() -> Contender:
        raise ImportError("no", name="MultiScaleDeformableAttention")

    calls = Counter[str]()
    fragile = cuda.kernel("fragile", 1.0, 1.0)

    def launch() -> None:
        calls["fragile"] += 1
        # Warm-up and captures pass; queued launches of the second round do not.
        if calls["fragile"] > WARM_UP + 13:
            raise RuntimeError("CUDA error: an illegal\naddress")
        fragile()

    made, missing = make_each(
        {
            "absent": absent,
            "a": lambda: timer.prepare(Contender(cuda.kernel("a", 1.0, 2.0))),
            "fragile": lambda: timer.prepare(Contender(launch, captured=False)),
            "b": lambda: timer.prepare(Contender(cuda.kernel("b", 3.0, 4.0))),
        }
    )
    assert missing == {"absent": "MultiScaleDeformableAttention is not installed"}
    found, failed = in_turn(made, 3, lambda prepared, turn: timer.measure(prepared))
    assert failed == {"fragile": "RuntimeError: CUDA error: an illegal address"}
    assert {name: len(rows) for name, rows in found.items()} == {"a": 3, "b": 3}


def test_rounds_run_in_turn_and_another_one_begins_each_time() -> None:
    order: list[tuple[int, str]] = []
    names = {name: name for name in "abc"}
    found, failed = in_turn(names, 4, lambda name, turn: order.append((turn, name)) or turn)
    assert "".join(name for _, name in order) == "abc" + "bca" + "cab" + "abc"
    assert found == {name: [0, 1, 2, 3] for name in "abc"}
    assert failed == {}
    with pytest.raises(AssertionError):
        in_turn(names, 2, lambda name, turn: None)


def test_the_spread_is_the_range_over_the_median() -> None:
    assert spread_of([4.0, 5.0, 6.0]) == {"p50": 5.0, "rounds": [4.0, 5.0, 6.0], "spread": 0.4}
