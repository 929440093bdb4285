"""Test I/O binding on the CPU: the calls are those of a GPU, the memory is the host's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeGraph
from rvos_deploy.runtime.backends.onnxruntime.binding import OrtTensor, run_bound
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_stream_over_bound_sessions_gives_the_same_masks(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    settings = StreamSettings(mode=mode, size=(64, 96), fallback="top1", mask_budget=10**6)  # type: ignore[arg-type]
    bundle = open_bundle(tiny_bundle)
    kinds: set[str] = set()

    def masks() -> list[np.ndarray]:
        with (
            load(tiny_bundle, threads=1) as segmenter,
            segmenter.stream(["the disc", "the square"], settings) as stream,
        ):
            results = [result for frame in probe_clip(4) for result in stream.push(frame)]
            return [result.masks for result in (*results, *stream.flush())]

    def bound(self, inputs, axes):  # type: ignore[no-untyped-def]
        kinds.update(f"{name} {type(value).__name__}" for name, value in inputs.items())
        return run_bound(self._session, ("cpu", 0), inputs, bundle.graphs[self.spec.name].outputs)

    truth = masks()
    monkeypatch.setattr(OnnxRuntimeGraph, "_run", bound)
    found = masks()
    assert all((one == other).all() for one, other in zip(found, truth, strict=True))
    # Features go from graph to graph without the host; what waits for the end may be on disk.
    assert {"res2 OrtTensor", "res5 OrtTensor"} <= kinds
    assert "mask_features OrtTensor" in kinds


def test_a_tensor_describes_itself() -> None:
    from onnxruntime import OrtValue

    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    tensor = OrtTensor(OrtValue.ortvalue_from_numpy(array), "float16")
    assert (tensor.shape, str(tensor.dtype), tensor.nbytes) == ((2, 3), "float16", 12)
    assert (np.asarray(tensor) == array).all()
    assert np.asarray(tensor, dtype=np.float32).dtype == np.float32
    assert "cpu" in repr(tensor).lower()
