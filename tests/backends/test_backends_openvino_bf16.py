"""Test ``--precision-hint bf16``: what is rounded, what stays in float32, and who is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threads_of_a_graph import assert_threads_get_their_own_outputs

import rvos_deploy
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.graph_spec import TOLERANCES
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip, probe_inputs
from rvos_deploy.parity.verification import MINIMUM_J_AND_F_LOWER, MaskCheck, verify
from rvos_deploy.runtime.backends.registry import make_backend

pytest.importorskip("openvino")

import openvino

from rvos_deploy.runtime.backends.openvino import backend as module
from rvos_deploy.runtime.backends.openvino.bf16_products import FEW_ROWS, rounded_products

op = openvino.opset13
AXES = {"H": 64, "W": 96, "E": 2, "L": 9, "M": 4}
UNIT = 2.0**-9
"""Largest relative error of one rounding to bfloat16."""


@pytest.fixture
def bf16() -> None:
    """Skip where the CPU or the installation cannot follow the hint."""
    if "BF16" not in module._capabilities() or not kernel.available():
        pytest.skip("needs a CPU with bfloat16 products and the CPU kernel")


def compiled(model: Any) -> Any:
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def attention_model(weights: np.ndarray, rows: int = -1) -> Any:
    """``softmax(x @ weights) @ x``, with open rows by default."""
    x = op.parameter(openvino.PartialShape([rows, weights.shape[0]]), np.float32, "x")
    logits = op.matmul(x, op.constant(weights), False, False)
    weighted = op.matmul(op.softmax(logits, -1), x, True, False)
    return openvino.Model([logits, weighted], [x])


def test_a_product_errs_by_its_roundings_and_attention_by_nothing_more(bf16: None) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((96, 64)).astype(np.float32)
    weights = generator.standard_normal((64, 96)).astype(np.float32)
    logits, weighted = compiled(rounded_products(attention_model(weights)))(x).values()
    exact = x.astype(np.float64) @ weights
    # Each factor is rounded once, and so is the result; sums are float32.
    bound = 2.01 * UNIT * (np.abs(x) @ np.abs(weights)) + UNIT * np.abs(exact) + 1e-4
    error = np.abs(logits - exact)
    assert (error <= bound).all()
    assert error.max() > UNIT, "nothing was rounded"
    powers = np.exp(np.float64(logits) - np.float64(logits).max(axis=-1, keepdims=True))
    softmax = powers / powers.sum(axis=-1, keepdims=True)
    # float32: 96 terms of about 1
    np.testing.assert_allclose(weighted, softmax.T @ x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [-1, FEW_ROWS, FEW_ROWS - 1])
def test_products_over_few_rows_stay_in_float32(bf16: None, rows: int) -> None:
    model = rounded_products(attention_model(np.ones((8, 8), np.float32), rows))
    rounded = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    types = [node.input(0).get_element_type().to_string() for node in rounded]
    assert sorted(types) == (["f32", "f32"] if 0 < rows < FEW_ROWS else ["bf16", "f32"])


def test_the_model_itself_is_not_changed() -> None:
    model = attention_model(np.ones((8, 8), np.float32))
    rounded_products(model)
    assert not [node for node in model.get_ops() if node.get_type_name() == "Convert"]


@pytest.fixture
def layers(bf16: None, tiny_bundle: Path) -> Iterator[Callable[[str], list[Any]]]:
    """Return the layers that OpenVINO executes for a graph of the tiny network."""

    def of(name: str) -> list[Any]:
        backend = make_backend("openvino", precision_hint="bf16")
        with backend.open(open_bundle(tiny_bundle), [name]) as session:
            graph = session.graphs[name]
            assert isinstance(graph, module.OpenVinoGraph)
            for _ in range(module.REPEATS):
                graph.run(probe_inputs(graph.spec, graph.spec.axis_sizes(AXES), 3))
            fixed, model = graph._compiled.popitem()
            assert fixed is not None, "fixed sizes were given up"
            found: list[Any] = model.compiled.get_runtime_model().get_ordered_ops()
            return found

    return of


def about(layer: Any, key: str) -> str:
    return str(layer.get_rt_info()[key].astype(str))


PRODUCTS = {"Convolution", "FullyConnected", "MatMul"}
NEVER = {"Softmax", "MVN", "RMS", "Reference", "Reduce", "Interpolate", "Math", "Eltwise"}


@pytest.mark.parametrize(
    ("name", "least"), [("backbone", 40), ("frame_decoder", 40), ("video_decoder", 5)]
)
def test_only_products_run_in_bfloat16(layers: Callable, name: str, least: int) -> None:
    kinds = [(about(one, "layerType"), about(one, "runtimePrecision")) for one in layers(name)]
    assert sum(kind in PRODUCTS and precision == "bf16" for kind, precision in kinds) >= least
    assert {precision for kind, precision in kinds if kind in NEVER} == {"f32"}


def test_deformable_attention_reads_locations_computed_in_float32(layers: Callable) -> None:
    operators = [one for one in layers("frame_decoder") if about(one, "layerType") == "Reference"]
    assert len(operators) == 3
    for operator in operators:
        value, _, *locations = (source.get_node() for source in operator.input_values())
        products = [last_products(one) for one in locations]
        # Reference points depend on no product; offsets and logits on one each.
        assert [len(found) for found in products] == [0, 1, 1]
        assert {about(one, "runtimePrecision") for found in products for one in found} == {"f32"}
        assert {about(one, "runtimePrecision") for one in last_products(value)} == {"bf16"}
        for source in (value, *locations):
            assert about(source, "outputPrecisions").split(",")[0] == "f32"


def last_products(layer: Any) -> list[Any]:
    """Return the products that a layer's numbers come from, through layers of other kinds."""
    if about(layer, "layerType") in PRODUCTS:
        return [layer]
    return [one for value in layer.input_values() for one in last_products(value.get_node())]


@pytest.mark.parametrize(
    "name",
    [
        "tiny_bundle",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("static_bundle", "online_refer_bundle", "tiny")
        ),
    ],
)
def test_all_checks_pass_under_the_tolerances_of_bf16(
    bf16: None, name: str, request: pytest.FixtureRequest
) -> None:
    bundle = open_bundle(name if name == "tiny" else request.getfixturevalue(name))
    results = verify(bundle, make_backend("openvino", precision_hint="bf16"))
    assert [result.name for result in results if not result.passed] == []
    by_graph = {result.name.split()[0]: result.tolerance for result in results}
    assert by_graph.pop("masks") == MINIMUM_J_AND_F_LOWER
    rounded = {graph for graph in by_graph if by_graph[graph] == TOLERANCES["bf16"]}
    assert rounded == set(module.ROUNDED) & set(bundle.graphs)
    assert {by_graph[graph] for graph in set(by_graph) - rounded} == {TOLERANCES["fp32"]}


def test_verify_names_the_precision(bf16: None, rvos: Callable, tmp_path: Path) -> None:
    hint = ("--backend", "openvino", "--precision-hint", "bf16")
    result = rvos("verify", "tiny", *hint, "--json", tmp_path / "v.json")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].endswith(" on cpu in bf16")
    record = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert record["versions"]["backend"]["precision"] == "bf16"
    assert "float32" in record["versions"]["backend"]["bfloat16"]


def test_run_says_what_was_not_measured_and_records_the_precision(
    bf16: None, tiny_bundle: Path, tmp_path: Path, rvos: Callable, video: Path
) -> None:
    result = rvos(
        "run", video, "the disc", "--bundle", tiny_bundle, "--backend", "openvino",
        "--precision-hint", "bf16", "--max-frames", 2, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert "compared with fp32 for the packaged bundle only" in result.stderr
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["versions"]["backend"]["precision"] == "bf16"


def test_equal_input_gives_equal_masks(bf16: None, tiny_bundle: Path) -> None:
    def masks() -> np.ndarray:
        settings = rvos_deploy.StreamSettings(mode="online", size=PROBE_BOX, fallback="top1")
        segmenter = rvos_deploy.load(tiny_bundle, backend="openvino", precision_hint="bf16")
        with segmenter, segmenter.stream(["the disc", "the square"], settings) as stream:
            return np.stack([r.masks for frame in probe_clip(8) for r in stream.push(frame)])

    first = masks()
    assert 0.001 < first.mean() < 0.999
    assert np.array_equal(masks(), first)


def test_threads_that_share_a_graph_get_equal_outputs(bf16: None, tiny_bundle: Path) -> None:
    backend = make_backend("openvino", precision_hint="bf16")
    with backend.open(open_bundle(tiny_bundle), ["frame_decoder"]) as session:
        graph = session.graphs["frame_decoder"]
        inputs = [probe_inputs(graph.spec, AXES, seed) for seed in range(4)]
        assert_threads_get_their_own_outputs(graph, inputs)


def test_small_graphs_and_contracts_stay_as_they_are(bf16: None, tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with make_backend("openvino", precision_hint="bf16").open(bundle) as session:
        rounded = {name for name, graph in session.graphs.items() if graph.spec.precision == "bf16"}
        assert rounded == set(module.ROUNDED)
        for name in set(bundle.graphs) - rounded:
            assert session.graphs[name].spec == bundle.graphs[name]


def test_a_cpu_without_the_products_is_refused(
    monkeypatch: pytest.MonkeyPatch, rvos: Callable, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_capabilities", lambda: ["FP32", "INT8"])
    out = tmp_path / "out"
    result = rvos("demo", "--backend", "openvino", "--precision-hint", "bf16", "--out", out)
    assert result.code == 2
    assert result.error == (
        "--precision-hint bf16 needs a CPU with bfloat16 products (AVX-512 BF16 or AMX), openvino "
        "found FP32, INT8; leave the hint out"
    )
    assert not out.exists()


def test_an_installation_without_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_capabilities", lambda: ["BF16"])
    monkeypatch.setattr(kernel, "_library", lambda: None)
    with pytest.raises(BackendError, match=r"needs a kernel: .* was not built"):
        make_backend("openvino", precision_hint="bf16")


@pytest.mark.parametrize(
    ("backend", "hint", "message"),
    [
        ("onnxruntime", "bf16", "onnxruntime cannot follow --precision-hint bf16; add --backend"),
        ("auto", "bf16", "--backend auto never chooses; add --backend openvino"),
        ("openvino", "int4", "unknown precision hint 'int4'; known: bf16"),
    ],
)
def test_other_requests_are_refused(backend: str, hint: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        make_backend(backend, precision_hint=hint)


def test_float16_bundles_are_refused(bf16: None, tiny_bundle_fp16: Path) -> None:
    backend = make_backend("openvino", precision_hint="bf16")
    with pytest.raises(BackendError, match="backbone is a float16 graph, and --precision-hint"):
        backend.open(open_bundle(tiny_bundle_fp16))


@pytest.mark.slow
def test_without_the_hint_the_precision_is_float32(tiny_bundle: Path) -> None:
    assert make_backend("openvino").describe()["precision"] == "fp32"
    results = verify(open_bundle(tiny_bundle), make_backend("openvino"))
    (masks,) = (result for result in results if isinstance(result, MaskCheck))
    assert masks.tolerance > MINIMUM_J_AND_F_LOWER
