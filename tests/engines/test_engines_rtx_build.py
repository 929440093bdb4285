"""Build engines of all five graphs with the real TensorRT-RTX, without a GPU, in fp32 and fp16.

TensorRT-RTX's strict typing checks the exported types at the same time: it refuses to parse a graph
that mixes types. What needs a driver (deserialising, the inspector, running) is refused, and the
sidecar says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvos_deploy.bundle.engine_sidecar import (
    EngineError,
    EngineSidecar,
    engine_folder,
    plan_file,
    read_sidecar,
)
from rvos_deploy.bundle.folder import (
    MANIFEST,
    PARITY,
    TOKENIZER,
    Bundle,
    open_bundle,
    write_manifest,
)
from rvos_deploy.engines.build import build_engines
from rvos_deploy.engines.settings import DEFAULT_CAPABILITIES, BuildSettings
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.files import sha256_file
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.contract import GRAPHS
from rvos_deploy.runtime.backends.gpu import find_gpu
from rvos_deploy.runtime.backends.tensorrt.engine_checks import (
    EngineMachine,
    check_loadable,
    check_plan,
)
from rvos_deploy.runtime.backends.tensorrt.engine_loading import deserialize, read_plan

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
TARGET = "tensorrt-rtx"
DTYPE = {"fp32": "float32", "fp16": "float16"}
PLAN_MAGIC = b"vtrt"

pytestmark = [
    pytest.mark.skipif(find_gpu() is not None, reason="written for machines without a GPU"),
    pytest.mark.timeout(900),
]


def links(source: Path, folder: Path) -> Path:
    """A bundle of links, so that engines can be put into it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    return folder


def export_graphs_alone(
    folder: Path, precision: str, name: str = "tiny", only: tuple[str, ...] = GRAPHS
) -> Path:
    """A bundle of a network's graphs, without a real tokenizer and parity: enough to build from.

    ``only``: those that are exported; of the rest there are contracts.
    """
    from rvos_deploy.export.onnx_graph import export_graph
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.networks.pan2024.graphs import graphs
    from rvos_deploy.networks.pan2024.modules.precision import set_precision

    network = set_precision(load_network(preset(name), Weights(random=True)), precision)
    folder.mkdir()
    parts = graphs(network)
    files = [
        file.name for part in parts if part.spec.name in only for file in export_graph(part, folder)
    ]
    for missing in {TOKENIZER, PARITY, *(f"{name}.onnx" for name in GRAPHS)} - {*files}:
        (folder / missing).write_bytes(b"not exported")
        files.append(missing)
    manifest = {
        "created": "2026-11-24T12:00:00Z",
        "weights": dict.fromkeys(("checkpoint", "checkpoint_sha256", "clip"))
        | {"random": True, "seed": 0, "stored": "fp32"},
        "parameters": 1,
        "versions": {},
        "parity": {"reference": "none", "checks": []},
        "model": network.config.as_dict(),
        "precision": precision,
        "graphs": {part.spec.name: part.spec.as_dict() for part in parts},
    }
    write_manifest(folder, manifest, files)
    return folder


@dataclass(frozen=True)
class Built:
    """A bundle with engines, and what the builder told."""

    bundle: Bundle
    engines: dict[str, EngineSidecar]
    told: list[tuple[str, str, float, float | None]]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All five engines of the tiny network in one precision."""
    folder = tmp_path_factory.mktemp(f"rtx-{request.param}")
    fixture = {"fp32": "tiny_bundle", "fp16": "tiny_bundle_fp16"}[request.param]
    source = request.getfixturevalue(fixture)
    bundle = open_bundle(links(source, folder / "bundle"))
    told: list[tuple[str, str, float, float | None]] = []
    sidecars = build_engines(
        bundle, BuildSettings(TARGET), progress=lambda *what: told.append(what)
    )
    return Built(bundle, {sidecar.graph: sidecar for sidecar in sidecars}, told)


def test_all_five_graphs_become_plans(built: Built) -> None:
    assert tuple(built.engines) == tuple(built.bundle.graphs) == GRAPHS
    for name, engine in built.engines.items():
        plan = plan_file(built.bundle.path, TARGET, name)
        with plan.open("rb") as file:
            assert file.read(4) == PLAN_MAGIC
        assert plan.stat().st_size == engine.plan_bytes > 100_000
        assert sha256_file(plan) == engine.plan_sha256
    folder = engine_folder(built.bundle.path, TARGET)
    names = {f"{name}.plan{ending}" for name in GRAPHS for ending in ("", ".json")}
    assert {file.name for file in folder.iterdir()} == names, "nothing else is left there"


def test_the_sidecar_records_the_build(built: Built) -> None:
    manifest = built.bundle.manifest
    for name, engine in built.engines.items():
        assert read_sidecar(built.bundle.path, TARGET, name) == engine
        assert engine.precision == built.bundle.precision
        assert engine.tensorrt_version == rtx.__version__
        assert engine.compute_capabilities == DEFAULT_CAPABILITIES
        assert engine.gpu is None
        assert dict(engine.onnx_sha256) == {
            file: entry.sha256
            for file, entry in manifest.files.items()
            if file.startswith(f"{name}.onnx")
        }
        axes = [axis.name for axis in built.bundle.graphs[name].axes]
        assert [list(profile) for profile in engine.profiles] == [axes]
        assert engine.plugin_layers == 0, "TensorRT-RTX takes the function's body"
        assert engine.build_seconds > 0
        assert engine.versions["tensorrt-rtx-cu12"] == rtx.__version__
        assert engine.settings["tf32"] is (built.bundle.precision != "fp32")
        check_plan(built.bundle, engine)


def test_the_layers_multiply_in_the_types_of_the_onnx(built: Built) -> None:
    wanted = DTYPE[built.bundle.precision]
    for name, engine in built.engines.items():
        multiplying = engine.layers["network"]["multiplying"]
        assert set(multiplying) <= {wanted, "float32"}
        share = multiplying[wanted] / sum(multiplying.values())
        # Mask logits and the sums of deformable attention stay in float32.
        assert share == 1.0 or name in ("frame_decoder", "mask_head")
        assert share > 0.5
        assert engine.layers["half_share"] == (share if wanted == "float16" else 0.0)
        assert "float64" not in engine.layers["network"]["all"]


def test_layer_norms_are_not_decomposed(built: Built) -> None:
    """One layer accumulates in float32; decomposed, fp16 would overflow (tensorrt.md)."""
    for name in ("backbone", "text_encoder", "frame_decoder", "video_decoder"):
        assert built.engines[name].layers["network"]["kinds"]["NORMALIZATION"] > 0


def test_an_engine_without_parity_results_is_refused(built: Built) -> None:
    for engine in built.engines.values():
        assert engine.parity is None
        assert engine.parity_reason == "built on a machine without a GPU, where it cannot be run"
        assert engine.layers["engine"] is None
        assert engine.layers["engine_reason"] == engine.parity_reason
        machine = EngineMachine(rtx.__version__, "8.9", "stand-in")
        with pytest.raises(EngineError) as error:
            check_loadable(built.bundle, engine, machine)
        assert "has no parity results (built on a machine without a GPU" in error.value.found
        assert error.value.command == (
            f"rvos-deploy build-engine {built.bundle.path} --target {TARGET}"
        )


def test_without_a_driver_tensorrt_itself_refuses(built: Built) -> None:
    """The real runtime refuses a plan that it built: no driver, no engine, one line."""
    plan = read_plan(built.bundle, built.engines["mask_head"])
    with pytest.raises(BackendError, match="cannot deserialise the plan; check the GPU's driver"):
        deserialize(rtx, rtx.Logger(rtx.Logger.INTERNAL_ERROR), plan, None)


def test_progress_is_reported(built: Built) -> None:
    for name in GRAPHS:
        shares = [share for graph, _, share, _ in built.told if graph == name]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(shares) > 20
    assert any(remaining for *_, remaining in built.told if remaining is not None)


@pytest.mark.parametrize(
    "graphs", [("backbone", "mask_head"), pytest.param(GRAPHS, marks=pytest.mark.slow)], ids=len
)
def test_a_bundle_of_fixed_sizes_becomes_engines_of_one_size(
    static_bundle: Path, tmp_path: Path, graphs: tuple[str, ...]
) -> None:
    bundle = open_bundle(links(static_bundle, tmp_path / "bundle"))
    engines = build_engines(bundle, BuildSettings(TARGET), graphs=graphs)
    assert tuple(engine.graph for engine in engines) == graphs
    for engine in engines:
        fixed = {name: (size,) * 3 for name, size in bundle.graphs[engine.graph].fixed.items()}
        assert [dict(profile) for profile in engine.profiles] == [fixed]
        check_plan(bundle, engine)
    with pytest.raises(InputError, match=r"E cannot be max 8; the graphs allow H 64 alone, W 96"):
        build_engines(bundle, BuildSettings(TARGET, profiles=("E=2:2:8",)))


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    return open_bundle(links(tiny_bundle, tmp_path / "bundle"))


Build = Callable[..., EngineSidecar]


@pytest.fixture
def build(bundle: Bundle) -> Build:
    """Build the smallest graph alone."""

    def call(**settings: Any) -> EngineSidecar:
        (sidecar,) = build_engines(bundle, BuildSettings(TARGET, **settings), graphs=["mask_head"])
        return sidecar

    return call


def test_settings_reach_the_builder_and_the_sidecar(build: Build) -> None:
    engine = build(
        profiles=("H=64:64:96,E=1", "H=96:128:128,W=64"),
        workspace_mib=256,
        optimization_level=0,
        compute_capabilities=("8.9", "12.0"),
    )
    assert engine.compute_capabilities == ("8.9", "12.0")
    assert engine.settings["workspace_mib"] == 256
    assert engine.settings["optimization_level"] == 0
    assert [profile["H"] for profile in engine.profiles] == [(64, 64, 96), (96, 128, 128)]
    assert [profile["E"] for profile in engine.profiles] == [(1, 1, 1), (1, 2, 8)]
    assert " ".join(engine.options) == (
        "--profile H=64:64:96,E=1 --profile H=96:128:128,W=64 --compute-capability 8.9 "
        "--compute-capability 12.0 --workspace 256 --optimization-level 0"
    )


def test_a_failed_build_leaves_earlier_engines(build: Build, bundle: Bundle) -> None:
    before = build()
    # TensorRT-RTX has no fp32 matrix product for Turing, and says so only while it builds.
    with pytest.raises(BackendError) as error:
        build(compute_capabilities=("7.5",))
    assert "cannot build mask_head: " in str(error.value)
    assert "FP32 GEMM is not supported" in str(error.value)
    assert "\n" not in str(error.value)
    after = read_sidecar(bundle.path, TARGET, "mask_head")
    assert after == before
    check_plan(bundle, after)
    assert len(list(engine_folder(bundle.path, TARGET).iterdir())) == 2


def test_too_little_workspace_is_one_line(build: Build) -> None:
    with pytest.raises(BackendError, match="try a larger --workspace or smaller --profile maxima"):
        build(workspace_mib=1)


def test_an_unknown_architecture_lists_the_known(build: Build) -> None:
    with pytest.raises(InputError) as error:
        build(compute_capabilities=("9.0",))
    assert "--compute-capability 9.0 is not known to tensorrt_rtx" in str(error.value)
    assert "8.0, 8.6, 8.9, 12.0" in str(error.value)


def test_an_unknown_graph_lists_the_known(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="--graph head: the bundle has backbone, text_encoder"):
        build_engines(bundle, BuildSettings(TARGET), graphs=["head"])


def test_ctrl_c_ends_the_build_and_leaves_nothing(bundle: Bundle) -> None:
    def interrupt(graph: str, what: str, share: float, remaining: float | None) -> None:
        if share > 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, BuildSettings(TARGET), graphs=["video_decoder"], progress=interrupt)
    assert not engine_folder(bundle.path, TARGET).exists()


def test_a_graph_of_mixed_types_is_refused(bundle: Bundle, resign: Callable[..., None]) -> None:
    """This checks the exported types: with one weight of another type, parsing fails."""
    import onnx
    from onnx import numpy_helper

    file = bundle.graph_file("mask_head").path
    model = onnx.load(str(file))
    weights = [w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT]
    largest = max(weights, key=lambda weight: len(weight.raw_data))
    halved = numpy_helper.to_array(largest).astype(np.float16)
    largest.CopyFrom(numpy_helper.from_array(halved, largest.name))
    file.unlink()
    onnx.save(model, str(file))
    resign(bundle.path)
    with pytest.raises(BackendError) as error:
        build_engines(open_bundle(bundle.path), BuildSettings(TARGET), graphs=["mask_head"])
    assert f"tensorrt_rtx {rtx.__version__} cannot parse mask_head.onnx: node " in str(error.value)
    assert not (engine_folder(bundle.path, TARGET) / "mask_head.plan").exists()
    assert MANIFEST in {path.name for path in bundle.path.iterdir()}


def test_bfloat16_reaches_the_network(tmp_path: Path) -> None:
    """Graphs of opset 22 have float32 edges; mask logits are an island."""
    bundle = open_bundle(export_graphs_alone(tmp_path / "bundle", "bf16", only=("mask_head",)))
    (engine,) = build_engines(bundle, BuildSettings(TARGET), graphs=["mask_head"])
    assert engine.precision == "bf16"
    assert engine.layers["network"]["multiplying"] == {"bfloat16": 2, "float32": 1}
    assert "float16" not in engine.layers["network"]["all"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_network_builds_in_bf16(tmp_path: Path) -> None:
    bundle = open_bundle(export_graphs_alone(tmp_path / "bundle", "bf16"))
    settings = BuildSettings(TARGET, compute_capabilities=("8.9",))
    for engine in build_engines(bundle, settings):
        assert engine.layers["half_share"] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_large_network_builds_in_fp16(tmp_path: Path) -> None:
    """The size is its own, 448x800, for one architecture."""
    bundle = open_bundle(export_graphs_alone(tmp_path / "large", "fp16", "large"))
    settings = BuildSettings(TARGET, compute_capabilities=("8.9",))
    for engine in build_engines(bundle, settings):
        assert engine.layers["half_share"] > 0.5
        assert engine.plan_bytes > 100_000
        print(f"{engine.graph}: {engine.build_seconds:.0f} s, {engine.plan_bytes / 2**20:.0f} MiB")
