"""Compare the bfloat16 reference with NumPy and ml_dtypes: one rounding behind every operator."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec, TensorSpec
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend, widened
from rvos_deploy.runtime.backends.registry import make_backend

ml_dtypes = pytest.importorskip("ml_dtypes", reason="comes with onnx")
NARROW = ml_dtypes.bfloat16

SPEC = GraphSpec(
    "small",
    (TensorSpec("x", "float32", ("N", 8)),),
    (TensorSpec("y", "float32", ("N", 3)), TensorSpec("island", "float32", ("N", 8))),
    (AxisSpec("N", 1, 64),),
    0.0,
    "bf16",
)


def rounded(numbers: np.ndarray) -> np.ndarray:
    """Round to bfloat16, ties to even, and return float32."""
    return numbers.astype(NARROW).astype(np.float32)


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "w": random.standard_normal((4, 3)).astype(NARROW),
        "b": random.standard_normal(3).astype(NARROW),
    }


@pytest.fixture
def small(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    """y = float(w * relu(halves of bf16(x), one through a function) + b); and a float32 island."""
    function = parser.parse_function(
        """
        <opset_import: ["" : 22], domain: "rvos">
        Doubled (v) => (o) { wide = Cast<to = 1>(v)
            two = Constant<value_float = 2.1>() product = Mul(wide, two) o = CastLike(product, v) }
        """
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Split", ["narrow"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Doubled", ["left"], ["left2"], domain="rvos"),
        helper.make_node("Add", ["left2", "right"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["relu"]),
        helper.make_node("MatMul", ["relu", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "wide"], ["island"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("island", TensorProto.FLOAT, ["N", 8]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("rvos", 1)],
        functions=[function],
        ir_version=10,
    )
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def test_every_operator_is_rounded_once(small: Path, weights: dict[str, np.ndarray]) -> None:
    """The results are equal bit by bit: products of 8-bit numbers and sums of four are nearly exact
    in float32, so the order of summation does not show.
    """
    x = (np.random.default_rng(5).standard_normal((33, 8)) * 10).astype(np.float32)
    with Bf16ReferenceBackend().open_files([(SPEC, OnnxFile(small))]) as session:
        found = session.graphs["small"].run({"x": x})
    narrow = rounded(x)
    left = rounded(narrow[:, :4] * np.float32(2.1))
    relu = np.maximum(rounded(left + narrow[:, 4:]), 0)
    w, b = (weights[name].astype(np.float32) for name in "wb")
    expected = rounded(rounded(relu @ w) + b)
    np.testing.assert_array_equal(found["y"], expected)
    np.testing.assert_array_equal(found["island"], narrow * narrow)
    assert not np.array_equal(found["island"], rounded(found["island"])), "islands stay float32"


def test_without_rounding_it_is_float32(small: Path, weights: dict[str, np.ndarray]) -> None:
    x = np.random.default_rng(6).standard_normal((5, 8)).astype(np.float32)
    with Bf16ReferenceBackend(rounding=False).open_files([(SPEC, OnnxFile(small))]) as session:
        found = session.graphs["small"].run({"x": x})
    w, b = (weights[name].astype(np.float32) for name in "wb")
    expected = np.maximum(x[:, :4] * np.float32(2.1) + x[:, 4:], 0) @ w + b
    # Sums of four in another order: a few units in the last place.
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["island"], x * x)


def test_only_the_rounding_casts_are_bfloat16(small: Path) -> None:
    model = widened(OnnxFile(small))
    assert all(weight.data_type != TensorProto.BFLOAT16 for weight in model.graph.initializer)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    narrow = {
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    assert narrow == {
        node.output[0] for node in model.graph.node if node.output[0].endswith("/bf16")
    }
    assert not [
        node
        for node in widened(OnnxFile(small), rounding=False).graph.node
        if any(a.name == "to" and a.i == TensorProto.BFLOAT16 for a in node.attribute)
    ]


def test_plain_onnxruntime_says_what_to_do_instead(small: Path) -> None:
    with pytest.raises(BackendError) as error:
        OnnxRuntimeBackend().open_files([(SPEC, OnnxFile(small))])
    text = str(error.value)
    assert "small computes in bfloat16, for which onnxruntime has no kernels on the CPU" in text
    assert "rvos-deploy build-engine BUNDLE" in text
    assert "--backend bf16-reference" in text
    assert "\n" not in text


def test_it_is_found_by_name_and_says_what_it_is() -> None:
    backend = make_backend("bf16-reference")
    assert backend.describe()["bfloat16"] == "carried in float32, rounded after every operator"
    with pytest.raises(BackendError, match="known: cpu"):
        make_backend("bf16-reference", "cuda")


def test_without_onnx_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match=r"pip install 'onnx>=1\.19'"):
        make_backend("bf16-reference")


def test_a_tensor_of_unknown_type_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of unknown type may need rounding."""
    infer = onnx.shape_inference.infer_shapes

    def forgetful(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
        inferred = infer(model, **options)
        del inferred.graph.value_info[0]
        return inferred

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", forgetful)
    with pytest.raises(BackendError, match="has no known type; export it again"):
        widened(OnnxFile(small))
