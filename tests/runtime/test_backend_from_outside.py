"""A back end that the package does not know: one class and a line in the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import rvos_deploy as rvos
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.parity.verification import verify
from rvos_deploy.runtime.backends.base import Backend, Graph, Session
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.backends.registry import BACKENDS, KnownBackend, make_backend

pytest.importorskip("openvino")


class OpenVinoGraph(Graph):
    """One graph, compiled for the CPU in float32."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        import onnx.inliner
        import openvino

        super().__init__(bundle.graphs[name])
        core = openvino.Core()
        model = onnx.load_model_from_string(bundle.graph_file(name).read().model)
        inlined = onnx.inliner.inline_local_functions(model)
        self._compiled = core.compile_model(
            core.read_model(inlined.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        found = self._compiled({name: np.asarray(value) for name, value in inputs.items()})
        return {tensor.name: np.array(found[tensor.name]) for tensor in self.spec.outputs}

    def _close(self) -> None:
        self._compiled = None


class OpenVinoBackend(Backend):
    name = "mine"

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        names = bundle.graphs if graphs is None else graphs
        return Session({name: OpenVinoGraph(bundle, name) for name in names}, HostOps())

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "device": "cpu"}


def test_it_verifies_and_gives_the_masks_of_onnxruntime(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        BACKENDS, "mine", KnownBackend(lambda device, threads: OpenVinoBackend(), "cpu")
    )
    assert all(result.passed for result in verify(open_bundle(tiny_bundle), make_backend("mine")))
    settings = rvos.StreamSettings(mode="offline", size=PROBE_BOX, fallback="top1")
    masks = []
    for backend in ("mine", "onnxruntime"):
        with (
            rvos.load(tiny_bundle, backend=backend) as segmenter,
            segmenter.stream(["the disc"], settings) as stream,
        ):
            for frame in probe_clip(4):
                stream.push(frame)
            masks.append(np.stack([result.masks for result in stream.flush()]))
    # Sums of another order move a pixel whose logit is near zero.
    assert (masks[0] != masks[1]).mean() < 1e-3
    assert 0.001 < masks[0].mean() < 0.999
