"""Test when runs are captured, what is kept, and what a refusal does, on a recording stand-in."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from recording_cuda import Gpu

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.tensorrt import cuda_graphs
from rvos_deploy.runtime.backends.tensorrt.cuda_graphs import (
    CapturedRuns,
    CaptureError,
    capture,
    free_graph,
    launch,
)


class Run:
    closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def sizes(width: int) -> dict[str, int]:
    return {"W": width, "H": 32}


def test_a_run_is_captured_when_its_sizes_come_again() -> None:
    runs: CapturedRuns[Run] = CapturedRuns("backbone")
    assert runs.find(sizes(64)) is None
    assert [
        runs.should_capture(sizes(64)),
        runs.should_capture(sizes(96)),
        runs.should_capture(sizes(64)),
    ] == [False, False, True]
    run = Run()
    runs.add(sizes(64), run)
    assert runs.find({"H": 32, "W": 64}) is run, "the order of the axes does not matter"
    assert runs.find(sizes(96)) is None


def test_sizes_that_come_once_are_never_captured_and_forgotten() -> None:
    runs: CapturedRuns[Run] = CapturedRuns("video_decoder")
    assert not any(runs.should_capture(sizes(32 * size)) for size in range(1, 1000))
    assert len(runs._seen) <= 64


def test_the_least_recently_used_run_goes() -> None:
    runs: CapturedRuns[Run] = CapturedRuns("backbone", capacity=2)
    first, second, third = Run(), Run(), Run()
    runs.add(sizes(1), first)
    runs.add(sizes(2), second)
    assert runs.find(sizes(1)) is first
    runs.add(sizes(3), third)
    assert (first.closed, second.closed, third.closed) == (False, True, False)
    assert len(runs) == 2
    runs.clear()
    assert first.closed
    assert third.closed
    assert len(runs) == 0


def test_disabling_warns_once() -> None:
    runs: CapturedRuns[Run] = CapturedRuns("mask_head")
    runs.should_capture(sizes(1))
    with pytest.warns(RuntimeWarning, match=r"mask_head runs without CUDA graphs.*because"):
        runs.disable("because")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs.disable("again")
    assert runs.reason == "because"
    assert not runs.should_capture(sizes(1))


def test_cuda_graphs_can_be_switched_off() -> None:
    runs: CapturedRuns[Run] = CapturedRuns("mask_head", enabled=False)
    assert [runs.should_capture(sizes(1)), runs.should_capture(sizes(1))] == [False, False]
    assert runs.reason == "CUDA graphs were switched off"


@pytest.fixture
def device(gpu: Gpu) -> Iterator[CudaDevice]:
    device = acquire_device(gpu.libraries)
    with device.current():
        yield device
    device.release()
    gpu.check_clean()


def test_a_capture_runs_nothing_and_a_replay_everything(gpu: Gpu, device: CudaDevice) -> None:
    ran: list[int] = []
    stream = int(device.compute.handle)

    def enqueue() -> bool:
        device.compute.put(lambda: ran.append(1))
        device.compute.put(lambda: ran.append(2))
        return True

    graph = capture(gpu.bindings, stream, enqueue)
    device.compute.synchronize()
    assert ran == []
    launch(gpu.bindings, graph, stream)
    launch(gpu.bindings, graph, stream)
    device.compute.synchronize()
    assert ran == [1, 2, 1, 2]
    free_graph(gpu.bindings, graph)


def test_a_refused_enqueue_ends_the_capture_and_keeps_no_graph(
    gpu: Gpu, device: CudaDevice
) -> None:
    with pytest.raises(CaptureError, match="TensorRT refused"):
        capture(gpu.bindings, int(device.compute.handle), lambda: False)
    assert device.compute.captured is None
    assert gpu.machine.graphs == {}


def test_an_error_in_the_enqueue_ends_the_capture(gpu: Gpu, device: CudaDevice) -> None:
    def enqueue() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        capture(gpu.bindings, int(device.compute.handle), enqueue)
    assert device.compute.captured is None
    assert gpu.machine.graphs == {}


@pytest.mark.parametrize(
    "name", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"]
)
def test_each_refusal_of_cuda_is_reported_and_leaves_nothing(
    gpu: Gpu, device: CudaDevice, name: str
) -> None:
    gpu.bindings.refusing.add(name)
    with pytest.raises(CaptureError, match=f"{name} failed with CUDA_ERROR_"):
        capture(gpu.bindings, int(device.compute.handle), lambda: True)
    assert device.compute.captured is None
    assert gpu.machine.graphs == {}


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("refusing", ["", "cuStreamBeginCapture", "cuStreamEndCapture"])
def test_nothing_is_collected_during_a_capture(
    gpu: Gpu, device: CudaDevice, enabled: bool, refusing: str
) -> None:
    """Afterwards collection is on or off as it was before."""
    gpu.bindings.refusing.add(refusing)
    during: list[bool] = []

    def enqueue() -> bool:
        during.append(gc.isenabled())
        return True

    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with suppress(CaptureError):
            free_graph(gpu.bindings, capture(gpu.bindings, int(device.compute.handle), enqueue))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert not any(during)


RUNTIME = """
static __thread int pending = 900;
int cudaGetLastError(void) { int error = pending; pending = 0; return error; }
int cudaPeekAtLastError(void) { return pending; }
"""

READ = """
import ctypes, sys
from rvos_deploy.runtime.backends.cuda.runtime_errors import clear_runtime_errors
assert clear_runtime_errors() == [], "no runtime is loaded, and none must be"
runtime = ctypes.CDLL(sys.argv[1])
assert runtime.cudaPeekAtLastError() == 900
assert clear_runtime_errors() == [900]
assert runtime.cudaPeekAtLastError() == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="shared runtimes are found by Linux's loader")
def test_the_pending_error_of_a_shared_runtime_is_cleared(tmp_path: Path) -> None:
    """Another library (PyTorch) would report the refused capture at its next launch."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    source, library = tmp_path / "cudart.c", tmp_path / "libcudart.so.13"
    source.write_text(RUNTIME)
    options = ("-shared", "-fPIC", f"-Wl,-soname,{library.name}")
    subprocess.run([compiler, *options, source, "-o", library], check=True)
    subprocess.run([sys.executable, "-c", READ, library], check=True)


@pytest.mark.parametrize("name", ["refused", "cuStreamBeginCapture", "cuStreamEndCapture"])
def test_every_refusal_clears_the_pending_error(
    gpu: Gpu, device: CudaDevice, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[bool] = []
    monkeypatch.setattr(
        cuda_graphs,
        "clear_runtime_errors",
        lambda: cleared.append(device.compute.captured is None),
    )
    stream = int(device.compute.handle)
    free_graph(gpu.bindings, capture(gpu.bindings, stream, lambda: True))
    assert cleared == []
    gpu.bindings.refusing.add(name)
    with pytest.raises(CaptureError):
        capture(gpu.bindings, stream, lambda: name != "refused")
    assert cleared == [True], "once, after the stream has left the capture"


def test_a_refused_replay_is_an_error(gpu: Gpu, device: CudaDevice) -> None:
    stream = int(device.compute.handle)
    graph = capture(gpu.bindings, stream, lambda: True)
    gpu.bindings.refusing.add("cuGraphLaunch")
    with pytest.raises(BackendError, match="cuGraphLaunch failed with CUDA_ERROR_INVALID_VALUE"):
        launch(gpu.bindings, graph, stream)
    free_graph(gpu.bindings, graph)
