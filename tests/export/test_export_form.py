"""Test ``--opset`` and ``--static-shapes``: contents of files, checks, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import shape_inference, version_converter
from onnx.numpy_helper import to_array

from rvos_deploy.bundle.folder import MANIFEST, open_bundle
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.export import onnx_graph
from rvos_deploy.export.graph_form import (
    DEFAULT_OPSET,
    OPSETS,
    GraphForm,
    StaticShapes,
    check_static,
    choose_opset,
    read_static_shapes,
)
from rvos_deploy.export.onnx_graph import export_graph, opset_of
from rvos_deploy.export.pan2024 import export_bundle
from rvos_deploy.export.parity import check_graph, check_without_rounding
from rvos_deploy.export.weights import Weights, load_network
from rvos_deploy.networks.export_graph import WITHOUT_ROUNDING, Graph
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.contract import GRAPHS
from rvos_deploy.networks.pan2024.graphs import AXES, graphs
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.modules.precision import set_precision
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.parity.verification import read_reference, verify
from rvos_deploy.runtime.backends.registry import make_backend

FIXED = {"H": 64, "W": 96, "E": 2, "L": 16, "M": 8}


def dimensions(model: onnx.ModelProto) -> dict[str, list[Any]]:
    """Return the shapes of all tensors by name; axes without numbers have names or None."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    return {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*inferred.input, *inferred.output, *inferred.value_info)
    }


def test_weights_in_a_separate_file_can_be_read_by_whoever_reads_the_graph(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "EXTERNAL_DATA_BYTES", 0)
    model = onnx.load(tiny_bundle / "mask_head.onnx")
    graph, data = onnx_graph.save_graph(model, tmp_path / "mask_head.onnx")
    assert data.stat().st_size > 1024
    assert data.stat().st_mode == graph.stat().st_mode
    pairs = zip(
        onnx.load(graph).graph.initializer,
        onnx.load(tiny_bundle / "mask_head.onnx").graph.initializer,
        strict=True,
    )
    assert all(np.array_equal(to_array(one), to_array(other)) for one, other in pairs)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tensor_of_a_fixed_graph_has_numbers(static_bundle: Path, name: str) -> None:
    model = onnx.load(static_bundle / f"{name}.onnx")
    shapes = dimensions(model)
    made = {output for node in model.graph.node for output in node.output if output}
    assert made <= set(shapes)
    assert {value.name for value in model.graph.value_info} <= made
    symbolic = {
        name: shape for name, shape in shapes.items() if not all(type(d) is int for d in shape)
    }
    assert symbolic == {}
    spec = open_bundle(static_bundle).graphs[name]
    for tensor in (*spec.inputs, *spec.outputs):
        assert shapes[tensor.name] == list(tensor.sizes(FIXED))
    assert "Shape" not in {node.op_type for node in model.graph.node}


def test_contracts_fix_all_sizes_and_opsets_are_recorded(static_bundle: Path) -> None:
    bundle = open_bundle(static_bundle)
    assert bundle.config.input_size == (64, 96)
    for spec in bundle.graphs.values():
        assert spec.fixed == {axis.name: FIXED[axis.name] for axis in spec.axes}
    manifest = json.loads((static_bundle / MANIFEST).read_text())
    assert manifest["opsets"] == dict.fromkeys(GRAPHS, 18)
    assert manifest["graphs"]["text_encoder"]["axes"] == [
        {"name": "E", "minimum": 2, "maximum": 2, "multiple": 1},
        {"name": "L", "minimum": 16, "maximum": 16, "multiple": 1},
    ]


def test_parity_is_probed_only_at_the_fixed_sizes(static_bundle: Path) -> None:
    bundle = open_bundle(static_bundle)
    checks = [check.name for check in bundle.manifest.parity.checks]
    assert {name.rsplit(" ", 1)[0] for name in checks[:-1]} == {
        "backbone H64 W96",
        "text_encoder E2 L16",
        "frame_decoder H64 W96 E2 L16",
        "video_decoder E2 L16 M8",
        "mask_head H64 W96 E2",
    }
    assert read_reference(bundle)["clip mask_logits"].shape == (2, 6, 16, 24)
    verdicts = verify(bundle, make_backend())
    assert [verdict.name for verdict in verdicts] == checks
    assert all(verdict.passed for verdict in verdicts)


def graph_of(network: RvosNetwork, name: str, fixed: dict[str, int] | None = None) -> Graph:
    return next(graph for graph in graphs(network, fixed) if graph.spec.name == name)


def test_without_a_fixed_memory_only_its_axis_is_dynamic(
    tiny_network: RvosNetwork, tmp_path: Path
) -> None:
    """The sizes include those that tracing uses for other axes."""
    fixed = StaticShapes(64, 96, 5, 5).axes()
    graph = graph_of(tiny_network, "video_decoder", fixed)
    (file,) = export_graph(graph, tmp_path)
    shapes = dimensions(onnx.load(file))
    assert shapes["memory"] == [5, "M", 20, 128]
    assert shapes["memory_empty"] == [5, "M"]
    assert shapes["text_tokens"] == [5, 5, 128]
    assert shapes["scores"] == [5, 20]
    checks = check_graph(graph, Pan2024(tiny_network.config), file, make_backend(), {})
    assert len({check.name.split(" M")[1].split()[0] for check in checks}) == 4
    assert all(check.passed for check in checks)


def check_fixed(network: RvosNetwork, name: str, expressions: int, folder: Path) -> None:
    graph = graph_of(network, name, StaticShapes(64, 96, expressions, 6, 3).axes())
    (file,) = export_graph(graph, folder)
    checks = check_graph(graph, Pan2024(network.config), file, make_backend(), {})
    assert [check.name for check in checks if not check.passed] == []


def test_as_many_expressions_as_heads(tiny_network: RvosNetwork, tmp_path: Path) -> None:
    """A rewriting rule of onnxscript took the axis of heads for that of expressions."""
    heads = tiny_network.encoder.layers[0].fusion.num_heads
    check_fixed(tiny_network, "frame_decoder", heads, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("expressions", [1, 3, 6, 8, 20])
@pytest.mark.parametrize("name", ["text_encoder", "frame_decoder", "video_decoder", "mask_head"])
def test_as_many_expressions_as_another_axis_has(
    tiny_network: RvosNetwork, tmp_path: Path, name: str, expressions: int
) -> None:
    """One, levels and memory, tokens, attention heads, queries."""
    check_fixed(tiny_network, name, expressions, tmp_path)


@pytest.mark.parametrize("opset", [17, 21, 25])
def test_a_small_graph_in_another_opset(
    tiny_network: RvosNetwork, tmp_path: Path, opset: int
) -> None:
    graph = graph_of(tiny_network, "mask_head")
    (file,) = export_graph(graph, tmp_path, opset=opset)
    assert opset_of(onnx.load(file)) == opset
    assert all(
        c.passed for c in check_graph(graph, Pan2024(tiny_network.config), file, make_backend(), {})
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("opset", OPSETS["fp32"])
def test_every_supported_opset_passes_every_check(
    tiny_network: RvosNetwork, tmp_path: Path, opset: int
) -> None:
    backend, network = make_backend(), Pan2024(tiny_network.config)
    for graph in graphs(tiny_network):
        (file,) = export_graph(graph, tmp_path, opset=opset)
        model = onnx.load(file)
        imports = [entry for holder in (model, *model.functions) for entry in holder.opset_import]
        assert {entry.version for entry in imports if not entry.domain} == {opset}
        failed = [c for c in check_graph(graph, network, file, backend, {}) if not c.passed]
        assert failed == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["text_encoder", "frame_decoder"])
def test_half_precision_in_the_outermost_opsets(tmp_path: Path, precision: str, name: str) -> None:
    network = set_precision(load_network(preset("tiny"), Weights(random=True)), precision)
    backend = make_backend("bf16-reference" if precision == "bf16" else "auto")
    graph, known = graph_of(network, name), Pan2024(network.config)
    for opset in (OPSETS[precision][0], OPSETS[precision][-1]):
        (file,) = export_graph(graph, tmp_path, opset=opset)
        checks = check_graph(graph, known, file, backend, {})
        checks += check_without_rounding(graph, known, file, WITHOUT_ROUNDING[precision])
        assert [check for check in checks if not check.passed] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_half_precision_of_fixed_sizes_in_an_old_opset(tmp_path: Path) -> None:
    """All graphs are float16 and pass the same checks."""
    form = GraphForm(opset=17, static=StaticShapes(64, 96, 3, 16))
    for precision, store in (("fp16", "fp32"), ("fp32", "fp16")):
        out = tmp_path / f"{precision}-{store}"
        weights = Weights(random=True, precision=precision, store=store)  # type: ignore[arg-type]
        export_bundle(preset("tiny"), out, weights, form=form)
        bundle = open_bundle(out)
        assert bundle.manifest.opsets == dict.fromkeys(GRAPHS, 17)
        assert all(verdict.passed for verdict in verify(bundle, make_backend()))


def test_a_converter_that_stops_short_is_an_error(
    tiny_network: RvosNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxscript logs the failure and leaves the model unchanged."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("No Adapter From Version $18 for Split")

    monkeypatch.setattr(version_converter, "convert_version", refuse)
    with pytest.raises(
        ParityError, match="mask_head: the converter left opset 18, asked for was 17"
    ):
        export_graph(graph_of(tiny_network, "mask_head"), tmp_path, opset=17)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", OPSETS)
def test_an_unsupported_opset_is_one_line(precision: str) -> None:
    allowed = OPSETS[precision]
    assert choose_opset(None, precision) == DEFAULT_OPSET[precision]
    for opset in allowed:
        assert choose_opset(opset, precision) == opset
    for opset in (0, allowed[0] - 1, allowed[-1] + 1):
        with pytest.raises(InputError) as error:
            choose_opset(opset, precision)
        needed = f"needs {allowed[0]} to {allowed[-1]} ("
        assert f"--opset {opset} cannot be written in {precision}: {needed}" in str(error.value)
        assert "\n" not in str(error.value)


def test_static_shapes_are_parsed() -> None:
    assert read_static_shapes("256x448,4,16") == StaticShapes(256, 448, 4, 16)
    assert read_static_shapes("64X96, 1, 77, 64") == StaticShapes(64, 96, 1, 77, 64)
    assert "M" not in read_static_shapes("256x448,4,16").axes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("256x448", "is not HxW,E,L or HxW,E,L,M"),
        ("256,448,4,16", "is not HxW,E,L"),
        ("256x448,4,16,64,1", "for example 256x448,4,16"),
        ("250x448,4,16", "axis H cannot be 250: needs 32 to 4096 in multiples of 32"),
        ("256x450,4,16", "axis W cannot be 450"),
        ("256x448,0,16", "axis E cannot be 0: needs 1 to 256"),
        ("256x448,4,78", "axis L cannot be 78: needs 2 to 77"),
        ("256x448,4,2", "2 tokens are start and end of a sentence, and no word"),
        ("256x448,4,16,0", "axis M cannot be 0"),
    ],
)
def test_wrong_static_shapes_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_static(read_static_shapes(text), AXES)
    assert str(error.value).startswith(("--static-shapes: axis", f"--static-shapes '{text}'"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (GraphForm(opset=16), "--opset 16 cannot be written in fp32: needs 17 to 25"),
        (
            GraphForm(static=StaticShapes(64, 96, 2, 16), size=(64, 64)),
            "--size 64x64 and --static-shapes 64x96,... name two sizes; leave --size out",
        ),
        (
            GraphForm(static=StaticShapes(64, 96, 256, 16, 65536)),
            r"--static-shapes gives video_decoder memory as \[256, 65536, 20, 128\], needed",
        ),
    ],
)
def test_a_refused_export_leaves_no_file(tmp_path: Path, form: GraphForm, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle(preset("tiny"), tmp_path / "b", Weights(random=True), form=form)
    assert list(tmp_path.iterdir()) == []
