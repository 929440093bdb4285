"""Test how a GPU's clock is watched: through the real nvidia-ml-py, and while something runs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from host_kernels import through_bindings

from rvos_deploy.benchmarks.gpu_clocks import (
    Reading,
    clock_reader,
    summarise_readings,
    watching,
)
from rvos_deploy.errors import BackendError


def test_the_real_nvidia_ml_py_reads_the_gpu_of_a_uuid(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="pip install nvidia-ml-py")
    script = Path(__file__).with_name("clocks_through_nvml.py")
    done = through_bindings("nvml.cpp", script, tmp_path, library="libnvidia-ml.so.1")
    assert done.stdout == "clocks arrived\n", done.stderr


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="does not tell the GPU's UUID"):
        clock_reader(None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(BackendError, match="nvidia-ml-py is not installed; pip install nvidia-ml"):
        clock_reader("GPU-1")


def reading(mhz: int, *reasons: str, watts: float | None = 100.0) -> Reading:
    return Reading(mhz, watts, 60, frozenset(reasons))


def test_clocks_are_read_while_the_block_runs() -> None:
    taken = [reading(1000 + number) for number in range(3)]
    three = threading.Event()
    calls: list[str] = []

    def read() -> Reading:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            three.set()
        return taken[min(len(calls), 3) - 1]

    with watching(read, interval=0.001) as record:
        assert three.wait(10), "nothing reads while the block runs"
        assert record == {}
    assert set(calls) == {"clocks"}
    assert record["readings"] == len(calls) >= 3
    assert record["sm_mhz"] == {"min": 1000, "p50": record["sm_mhz"]["p50"], "max": 1002}
    count = len(calls)
    assert not any(thread.name == "clocks" for thread in threading.enumerate())
    assert len(calls) == count


def test_a_block_of_no_length_is_read_once() -> None:
    with watching(lambda: reading(1500), interval=60) as record:
        pass
    assert record["readings"] == 1


def test_a_failed_reading_does_not_end_the_block() -> None:
    failed = threading.Event()

    def read() -> Reading:
        failed.set()
        raise BackendError("NVML cannot read the GPU's clock: lost")

    with watching(read) as record:
        assert failed.wait(10)
        done = True
    assert done
    assert record == {"reason": "NVML cannot read the GPU's clock: lost"}
    with watching(None) as record:
        pass
    assert record == {}


def test_an_error_of_the_block_passes() -> None:
    with pytest.raises(ZeroDivisionError), watching(lambda: reading(1500)):
        raise ZeroDivisionError


def test_a_clock_that_moves_is_marked_with_the_reasons() -> None:
    steady = summarise_readings([reading(1500), reading(1490), reading(1500, watts=None)])
    assert steady["steady"] is True
    assert steady["throttled"] == []
    assert steady["watts"] == {"min": 100.0, "p50": 100.0, "max": 100.0}
    moved = summarise_readings([reading(1500, "power limit"), reading(1400, "clocks were set")])
    assert moved["steady"] is False
    assert moved["throttled"] == ["clocks were set", "power limit"]
    assert summarise_readings([reading(1500, watts=None)])["watts"] is None
