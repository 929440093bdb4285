"""The way of an engine from the builder into the bundle where there is a GPU to prove it on.

The plan is built by the real TensorRT-RTX; a GPU is made up, and ONNX Runtime stands in for the
engine that would run on it. Everything else is what runs on a machine with a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvos_deploy.bundle.engine_sidecar import engine_folder, read_sidecar
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.engines import build, proof
from rvos_deploy.engines.build import build_engines
from rvos_deploy.engines.gpu import Gpu
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.errors import ParityError
from rvos_deploy.runtime.backends.base import Runner, Value
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.tensorrt.engine_checks import EngineMachine, check_loadable

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
SMALL = "H=32:64:96,W=32:96:160,E=1:2:3,L=2:5:20,M=1:3:8"
SETTINGS = BuildSettings("tensorrt-rtx", profiles=(SMALL,))
LAYERS = {"Layers": [{"Name": "matmul", "Outputs": [{"Name": "y", "DataType": "Float"}]}]}


class StandInEngine(Runner):
    """Stands in for a plan on a GPU: runs the bundle's ONNX, plus an error that a test sets."""

    bundle: Bundle
    error = 0.0
    plans: list[Path]

    def __init__(
        self,
        trt: Any,
        logger: Any,
        spec: Any,
        plan: Path,
        weights: OnnxFile | None,
        profiles: Any,
        *,
        allow_host_code: bool = False,
    ) -> None:
        super().__init__(spec)
        assert plan.is_file()
        assert (weights, allow_host_code) == (None, False)
        self.plans.append(plan)
        self.inner = OnnxRuntimeBackend().runner(spec, self.bundle.graph_file(spec.name))

    def activate_impl(self) -> None:
        self.inner.activate()

    def infer_impl(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        outputs = self.inner.infer(inputs)
        return {name: value + np.float32(self.error) for name, value in outputs.items()}

    def layer_report(self) -> str:
        return json.dumps(LAYERS)

    def deactivate_impl(self) -> None:
        self.inner.deactivate()


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle on a machine with a made-up GPU."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    opened = open_bundle(folder)
    gpu = Gpu("NVIDIA GeForce RTX 4090", "8.9")
    monkeypatch.setattr(build, "open_target", lambda target: (rtx, gpu))
    monkeypatch.setattr(proof, "PlanRunner", StandInEngine)
    monkeypatch.setattr(StandInEngine, "bundle", opened, raising=False)
    monkeypatch.setattr(StandInEngine, "plans", [], raising=False)
    return opened


def test_an_engine_that_is_proven_may_be_loaded(bundle: Bundle) -> None:
    (built,) = build_engines(bundle, SETTINGS, graphs=["mask_head"])
    engine = read_sidecar(bundle.path, "tensorrt-rtx", "mask_head")
    assert engine == built
    assert engine.gpu == "NVIDIA GeForce RTX 4090"
    assert engine.parity_passed
    assert engine.parity_reason is None
    assert engine.parity is not None
    *numbers, masks = engine.parity
    assert len(numbers) == 1 + 2**3
    assert all(check["max_abs"] <= check["tolerance"] for check in numbers)
    assert masks["j_and_f"] == 1.0
    assert masks["name"].startswith("masks of a clip, 6 frames, 2 expressions")
    assert engine.layers["engine"] == {"float32": 1}
    assert engine.layers["engine_reason"] is None
    check_loadable(bundle, engine, EngineMachine(rtx.__version__, "8.9"))
    (plan,) = StandInEngine.plans
    assert plan.parent.parent == engine_folder(bundle.path, "tensorrt-rtx")
    assert not plan.exists(), "it was compared before it was renamed"


def test_an_engine_that_is_wrong_never_gets_its_place(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandInEngine, "error", 0.01)
    with pytest.raises(ParityError, match="9 of 9 parity checks of the tensorrt-rtx engines"):
        build_engines(bundle, SETTINGS, graphs=["mask_head"])
    assert not engine_folder(bundle.path, "tensorrt-rtx").exists()


def test_an_engine_whose_masks_are_wrong_never_gets_its_place(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "compare_graph", lambda engine, expected, profiles: [])
    monkeypatch.setattr(StandInEngine, "error", -1e6)
    with pytest.raises(ParityError, match=r"1 of 1 parity checks .* masks of a clip"):
        build_engines(bundle, SETTINGS, graphs=["mask_head"])
    assert not engine_folder(bundle.path, "tensorrt-rtx").exists()
