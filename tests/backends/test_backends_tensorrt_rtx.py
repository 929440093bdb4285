"""Test the back end that runs TensorRT-RTX's plans, on the stand-ins of TensorRT's tests.

The session is TensorRT's; what differs is the module, the folder, and how a context is made.
tests/engines/test_engines_bindings.py looks every name up in the real tensorrt_rtx.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_fixtures import both_drivers
from host_kernels import host_library
from recording_cuda import Gpu
from recording_tensorrt import FakeTensorRtRtx
from stand_in_engines import add_engines

from rvos_deploy.bundle.engine_sidecar import EngineError, plan_file, sidecar_file
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings


@pytest.fixture
def rtx_engines(
    tiny_bundle: Path, tmp_path: Path, cuda_modules: Gpu, monkeypatch: pytest.MonkeyPatch
) -> Bundle:
    """A bundle with TensorRT-RTX's engines, and the stand-in where Python looks for the module."""
    bundle = add_engines(tiny_bundle, tmp_path / "bundle", "tensorrt-rtx")
    fake = FakeTensorRtRtx(cuda_modules.machine, dict(bundle.graphs))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return bundle


def masks(bundle: Bundle, backend: str) -> list[np.ndarray]:
    settings = StreamSettings(size=PROBE_BOX, fallback="top1", lookahead=1)
    threads = 1 if backend == "onnxruntime" else None
    with (
        load(bundle.path, backend=backend, threads=threads) as segmenter,
        segmenter.stream(["the disc", "the square"], settings) as stream,
    ):
        results = [result for frame in probe_clip(4) for result in stream.push(frame)]
        return [np.array(result.masks) for result in (*results, *stream.flush())]


@both_drivers
def test_plans_of_tensorrt_rtx_give_the_masks_that_onnxruntime_gives(
    gpu: Gpu, rtx_engines: Bundle
) -> None:
    host_library()
    truth = masks(rtx_engines, "onnxruntime")
    found = masks(rtx_engines, "tensorrt-rtx")
    assert all((ours == theirs).all() for ours, theirs in zip(found, truth, strict=True))
    assert any(mask.any() for mask in truth)
    described = make_backend("tensorrt-rtx").describe()
    assert (described["name"], described["version"]) == ("tensorrt-rtx", "1.7.1.116")
    gpu.check_clean()


def test_engines_of_the_other_target_are_not_taken(gpu: Gpu, rtx_engines: Bundle) -> None:
    sidecar_file(plan_file(rtx_engines.path, "tensorrt-rtx", "backbone")).unlink()
    with pytest.raises(EngineError, match=r"build-engine .* --target tensorrt-rtx"):
        load(rtx_engines.path, backend="tensorrt-rtx")
    gpu.check_clean()


def test_what_is_missing_is_named_with_the_extra(
    gpu: Gpu, rtx_engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"tensorrt-rtx is not installed; pip .*-rtx\]"):
        make_backend("tensorrt-rtx")
    with pytest.raises(BackendError, match="tensorrt-rtx has no device 'cpu'; known: cuda"):
        make_backend("tensorrt-rtx", "cpu")
