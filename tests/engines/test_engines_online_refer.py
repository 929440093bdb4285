"""Build engines of OnlineRefer's three graphs with the real TensorRT-RTX, without a GPU.

Its strict typing checks the exported types at the same time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rvos_deploy.bundle.engine_sidecar import engine_folder, plan_file, read_sidecar
from rvos_deploy.bundle.folder import PARITY, TOKENIZER, Bundle, open_bundle, write_manifest
from rvos_deploy.engines.build import build_engines
from rvos_deploy.engines.profiles import default_profile
from rvos_deploy.engines.settings import DEFAULT_CAPABILITIES, BuildSettings
from rvos_deploy.files import sha256_file
from rvos_deploy.networks.online_refer.config import preset
from rvos_deploy.networks.online_refer.contract import GRAPHS
from rvos_deploy.runtime.backends.gpu import find_gpu
from rvos_deploy.runtime.backends.tensorrt.engine_checks import check_plan

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
TARGET = "tensorrt-rtx"
DTYPE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

pytestmark = [
    pytest.mark.skipif(find_gpu() is not None, reason="written for machines without a GPU"),
    pytest.mark.timeout(900),
]


def graphs_alone(folder: Path, precision: str) -> Bundle:
    """A bundle of the graphs, without a real tokenizer and parity: enough to build from."""
    from rvos_deploy.export.online_refer import OnlineReferWeights, load_weights
    from rvos_deploy.export.onnx_graph import export_graph
    from rvos_deploy.networks.online_refer.graphs import graphs

    config = preset("onlinerefer-tiny")
    folder.mkdir()
    parts = graphs(load_weights(config, OnlineReferWeights(precision=precision)))  # type: ignore[arg-type]
    files = [file.name for part in parts for file in export_graph(part, folder)]
    for missing in (TOKENIZER, PARITY):
        (folder / missing).write_bytes(b"not exported")
        files.append(missing)
    manifest = {
        "family": "online_refer",
        "created": "2026-11-30T12:00:00Z",
        "weights": dict.fromkeys(("checkpoint", "checkpoint_sha256", "clip"))
        | {"random": True, "seed": 0, "stored": "fp32"},
        "parameters": 1,
        "versions": {},
        "parity": {"reference": "none", "checks": []},
        "model": config.as_dict(),
        "precision": precision,
        "graphs": {part.spec.name: part.spec.as_dict() for part in parts},
    }
    write_manifest(folder, manifest, files)
    return open_bundle(folder)


def test_the_default_profile_has_every_axis(online_refer_bundle: Path) -> None:
    bundle = open_bundle(online_refer_bundle)
    height, width = bundle.config.input_size
    profile = default_profile(bundle)
    assert set(profile) == {"H", "W", "E", "L"}
    assert (profile["H"], profile["W"]) == ((32, height, height), (32, width, width))
    assert profile["E"][0] == 1
    assert profile["L"][2] <= bundle.graphs["text_encoder"].axis("L").maximum


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_all_three_graphs_become_plans(tmp_path: Path, precision: str) -> None:
    bundle = graphs_alone(tmp_path / "bundle", precision)
    engines = {engine.graph: engine for engine in build_engines(bundle, BuildSettings(TARGET))}
    assert tuple(engines) == tuple(bundle.graphs) == GRAPHS
    for name, engine in engines.items():
        plan = plan_file(bundle.path, TARGET, name)
        assert plan.read_bytes()[:4] == b"vtrt"
        assert plan.stat().st_size == engine.plan_bytes > 100_000
        assert sha256_file(plan) == engine.plan_sha256
        assert read_sidecar(bundle.path, TARGET, name) == engine
        assert engine.precision == precision
        assert engine.compute_capabilities == DEFAULT_CAPABILITIES
        axes = [axis.name for axis in bundle.graphs[name].axes]
        assert [list(profile) for profile in engine.profiles] == [axes]
        assert engine.plugin_layers == 0, "TensorRT-RTX takes the function's body"
        assert (engine.parity, engine.layers["engine"]) == (None, None), "nothing can run here"
        multiplying = engine.layers["network"]["multiplying"]
        # Boxes, scores and the controller of masks compute in float32 (modules/precision.py).
        assert set(multiplying) <= {DTYPE[precision], "float32"}
        assert multiplying[DTYPE[precision]] > sum(multiplying.values()) / 2
        assert "float64" not in engine.layers["network"]["all"]
        check_plan(bundle, engine)
    names = {f"{name}.plan{ending}" for name in GRAPHS for ending in ("", ".json")}
    assert {file.name for file in engine_folder(bundle.path, TARGET).iterdir()} == names
