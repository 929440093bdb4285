"""Test the comparison of kernels without a GPU: PyTorch's forms on the CPU, what is missing, the
record; the clock and the streams are those of a stand-in of ``torch.cuda``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recording_torch import RecordingTorchCuda

from rvos_deploy.benchmarks import gpu_kernels
from rvos_deploy.benchmarks.deformable_case import Case, make_case
from rvos_deploy.benchmarks.deformable_operators import (
    IM2COL_STEP,
    MODULE,
    official_operator,
    on_current_stream,
    sampled,
)
from rvos_deploy.benchmarks.gpu_clocks import Reading
from rvos_deploy.benchmarks.gpu_kernels import time_case
from rvos_deploy.benchmarks.gpu_timing import Contender, LaunchTimer
from rvos_deploy.errors import BackendError
from rvos_deploy.networks.modules.ms_deform_attn import eager_ms_deform_attn

LEVELS = ((2, 3), (4, 6))


@pytest.fixture
def case() -> Case:
    return make_case("fp32", batch=2, levels=LEVELS, device="cpu")


def test_pytorchs_form_reads_nothing_back_and_breaks_no_graph(case: Case) -> None:
    """On the device ``meta`` there is nothing to read; ``.tolist()`` and ``.item()`` would fail."""
    value, shapes, *rest = case.inputs
    wanted = eager_ms_deform_attn(*case.inputs)
    meta = [tensor.to("meta") for tensor in (value, *rest)]
    assert eager_ms_deform_attn(meta[0], LEVELS, *meta[1:]).shape == wanted.shape
    with pytest.raises(NotImplementedError):
        eager_ms_deform_attn(meta[0], shapes.to("meta"), *meta[1:])
    whole = torch.compile(eager_ms_deform_attn, backend="eager", fullgraph=True)
    assert torch.equal(whole(value, LEVELS, *rest), wanted)


class Official(SimpleNamespace):
    """Deformable-DETR's operator, after the published definition: plain sums over samples."""

    @staticmethod
    def ms_deform_attn_forward(
        value: Any, shapes: Any, starts: Any, locations: Any, weights: Any, step: int
    ) -> Any:
        assert shapes.dtype == starts.dtype == torch.int64
        assert step == IM2COL_STEP
        total: Any = 0
        for level, (height, width) in enumerate(shapes.tolist()):
            start = int(starts[level])
            pixels = value[:, start : start + height * width].permute(0, 2, 3, 1)
            image = pixels.reshape(-1, pixels.shape[2], height, width)
            grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            read = torch.nn.functional.grid_sample(image, grid, align_corners=False)
            shares = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            total = total + (read * shares).sum(-1)
        batch = value.shape[0]
        return total.view(batch, -1, locations.shape[1]).transpose(1, 2)


def test_the_operators_get_locations_and_weights(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE, Official())
    found = official_operator(case.inputs, LEVELS)()
    torch.testing.assert_close(found, eager_ms_deform_attn(*case.inputs), atol=2e-4, rtol=0)
    starts, locations, weights = sampled(case.inputs)
    assert starts.tolist() == [0, 6]
    assert starts.dtype == torch.int32
    assert locations.shape == case.inputs[3].shape
    assert torch.allclose(weights.sum((-1, -2)), torch.ones(()))


def test_a_folder_of_something_else_is_not_built(case: Case, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"holds no src/cuda/\*\.cu; give the folder models/ops"):
        official_operator(case.inputs, LEVELS, tmp_path)


class Context:
    """Stands in for a TensorRT execution context."""

    def __init__(self, cuda: RecordingTorchCuda) -> None:
        self.launch = cuda.kernel("plugin", 3.0, 7.0)
        self.streams: list[int] = []
        self.accepts = True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.streams.append(stream_handle)
        self.launch()
        return self.accepts


def test_nvidias_plugin_runs_on_the_timers_own_stream_and_is_captured() -> None:
    cuda = RecordingTorchCuda()
    timer, context = LaunchTimer(cuda, cuda.flush), Context(cuda)
    prepared = timer.prepare(Contender(on_current_stream(cuda, context, (), None)))
    assert set(context.streams) == {cuda.streams[0].cuda_stream}
    enqueued = len(context.streams)
    times = timer.measure(prepared)
    assert (times.warm, times.flushed) == (pytest.approx(0.003), pytest.approx(0.007))
    assert len(context.streams) == enqueued, "a replay needs no call of TensorRT"
    context.accepts = False
    with pytest.raises(BackendError, match="TensorRT refused to run Multiscale"):
        timer.prepare(Contender(on_current_stream(cuda, context, (), None)))


def test_what_is_missing_is_a_line_and_the_others_are_timed(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No driver is there for our kernel and no TensorRT; PyTorch's forms run on the CPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, MODULE, None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    cuda = RecordingTorchCuda()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: cuda.streams[0])

    def no_copy(case: Case) -> Contender:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(gpu_kernels, "_copy", no_copy)
    monkeypatch.setattr(gpu_kernels, "_flush", lambda module, case: module.flush)
    kernel, grid_sample = cuda.kernel("grid_sample", 4.0, 9.0), torch.nn.functional.grid_sample

    def recorded(*given: Any, **options: Any) -> Any:
        if cuda.current is not None:
            kernel()
        return grid_sample(*given, **options)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", recorded)
    readings: list[int] = []

    def read() -> Reading:
        readings.append(1)
        return Reading(1500, 80.0, 50, frozenset(("power limit",)))

    found = time_case(cuda, case, 3, read=read, launches=2)
    timed = {row["name"]: row for row in found["timings"]}
    assert list(timed) == [
        "grid_sample",
        "grid_sample, torch.compile",
        "grid_sample, reduce-overhead",
    ]
    assert {name.split(":")[0] for name in found["missing"]} == {
        *(f"tactic {number}" for number in gpu_kernels.TACTICS),
        "Deformable-DETR's operator",
        "MultiscaleDeformableAttnPlugin_TRT",
        "device copy",
    }
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert found["missing"]["device copy"] == reason
    assert "give --operator Deformable-DETR/models/ops" in str(found["missing"])
    for row in timed.values():
        assert len(row["milliseconds"]["rounds"]) == len(row["flushed_milliseconds"]["rounds"]) == 3
    # Two levels are two kernels. The second one finds the flushed cache filled by the first.
    assert timed["grid_sample"]["milliseconds"]["p50"] == pytest.approx(0.008)
    assert timed["grid_sample"]["flushed_milliseconds"]["p50"] == pytest.approx(0.013)
    assert timed["grid_sample"]["gigabytes_per_second"] == pytest.approx(case.moved / 8e3)
    assert timed["grid_sample"]["difference"] == 0.0
    assert found["clocks"]["readings"] == len(readings) >= 1
    assert found["clocks"]["throttled"] == ["power limit"]
    json.dumps(found, allow_nan=False)


def test_a_flush_writes_over_more_than_the_cache(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = RecordingTorchCuda()
    for least, size in ((2**10, 2**21), (2**22, 2**22)):
        monkeypatch.setattr(gpu_kernels, "LEAST_FLUSH", least)
        flushed: Any = gpu_kernels._flush(cuda, case)()
        assert (flushed.nbytes, int(flushed.max())) == (size, 0), "the cache holds 2**20 bytes"


@pytest.mark.slow
def test_the_compiled_form_equals_the_eager_one(case: Case) -> None:
    for mode in (None, "reduce-overhead"):
        contender = gpu_kernels._compiled(case, mode)
        assert contender.captured is (mode is None)
        torch.testing.assert_close(contender.launch(), eager_ms_deform_attn(*case.inputs))
