"""Test ``--precision int8``: numbers, the form of the graph, the choice of layers, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import Call
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.manifest import QuantizationRecord
from rvos_deploy.errors import InputError, ParityError, VideoError
from rvos_deploy.export.bundle_export import NOT_PROVED
from rvos_deploy.export.calibration import (
    Calibration,
    CalibrationOptions,
    check_calibration,
    read_calibration,
    spread_frames,
)
from rvos_deploy.export.graph_form import GraphForm, StaticShapes
from rvos_deploy.export.int8 import quantize
from rvos_deploy.export.pan2024 import export_bundle
from rvos_deploy.export.pointwise import products_of_pointwise
from rvos_deploy.export.weights import Weights
from rvos_deploy.graph_io.frame_geometry import resize_frame
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.parity.verification import verify
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.stream_settings import StreamSettings

Array = NDArray[np.float64]
HEIGHT, WIDTH, INNER, OUTER = 5, 7, 6, 3


def frames(count: int, seed: int) -> list[NDArray]:
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, (1, HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(count)]


def calibration(maximum_error: float = 0.015) -> Calibration:
    return Calibration("noise", tuple(frames(4, 0)), tuple(frames(3, 1)), maximum_error)


def weights(seed: int = 3) -> dict[str, NDArray[np.float32]]:
    random = np.random.RandomState(seed)
    first = random.standard_normal((3, INNER)) * np.geomspace(0.01, 10, INNER)  # by channel
    return {
        "first.weight": first.astype(np.float32),
        "second.weight": random.standard_normal((OUTER, INNER, 3, 3)).astype(np.float32),
        "scale": np.float32([1.3, 0.7, 1.1, 0.9, 1.2, 0.8]),
        "shift": random.standard_normal(INNER).astype(np.float32),
        "bias": random.standard_normal(OUTER).astype(np.float32),
    }


def small_model() -> onnx.ModelProto:
    """A product, LayerNorm, a residual sum and a convolution, with awkward sizes."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["real"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["real", "divisor"], ["pixels"], "scaled"),
        helper.make_node("MatMul", ["pixels", "first.weight"], ["mixed"], "first"),
        helper.make_node("LayerNormalization", ["mixed", "scale", "shift"], ["normed"], "norm"),
        helper.make_node("Add", ["normed", "mixed"], ["summed"], "residual"),
        helper.make_node("Transpose", ["summed"], ["turned"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["turned", "second.weight", "bias"], ["out"], "second", pads=[1, 1, 1, 1]
        ),
    ]
    constants = {**weights(), "divisor": np.float32(64.0)}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, "H", "W", 3])],
            [
                helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, OUTER, "H", "W"]),
                helper.make_tensor_value_info("mixed", TensorProto.FLOAT, [1, "H", "W", INNER]),
            ],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, frame: NDArray, *, optimize: bool) -> list[NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[NDArray[np.float32]] = session.run(None, {"frame": frame})
    return outputs


def rounded(x: Array, scale: Array | float) -> Array:
    """What int8 keeps of numbers: rounded to the nearest of 256 steps, half to even."""
    return np.clip(np.rint(x / scale), -128, 127) * scale


def symmetric(arrays: list[Array]) -> float:
    return max(float(np.abs(x).max()) for x in arrays) / 127


def reference(
    frame: NDArray, scales: dict[str, float] | None
) -> tuple[dict[str, Array], tuple[Array, Array]]:
    """The small model in float64, with int8 inputs, weights and outputs if there are scales.

    Returns the tensors that need a scale, and both outputs.
    """
    w = {name: value.astype(np.float64) for name, value in weights().items()}

    def fake(name: str, x: Array) -> Array:
        return x if scales is None else rounded(x, scales[name])

    first, second = w["first.weight"], w["second.weight"]
    if scales is not None:
        first = rounded(first, np.abs(first).max(axis=0) / 127)
        second = rounded(second, np.abs(second).max(axis=(1, 2, 3), keepdims=True) / 127)
    pixels = frame.astype(np.float64) / 64
    mixed = fake("pixels", pixels) @ first
    centred = mixed - mixed.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    summed = centred / deviation * w["scale"] + w["shift"] + mixed
    image = np.pad(fake("turned", summed)[0], ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((OUTER, HEIGHT, WIDTH)) + w["bias"][:, None, None]
    for dy in range(3):
        for dx in range(3):
            part = image[dy : dy + HEIGHT, dx : dx + WIDTH]
            out += np.einsum("hwi,oi->ohw", part, second[:, :, dy, dx])
    tensors = {"pixels": pixels, "turned": summed, "out": out}
    return tensors, (fake("out", out)[None], mixed)


def test_numbers_equal_rounding_in_float64() -> None:
    found = quantize("small", small_model(), calibration(1.0))
    exact = [reference(frame, None)[0] for frame in calibration().calibrating]
    scales = {name: symmetric([t[name] for t in exact]) for name in exact[0]}
    for frame in frames(3, seed=9):
        _, wanted = reference(frame, scales)
        for optimize in (False, True):
            for one, other, step in zip(
                run(found.model, frame, optimize=optimize), wanted, (scales["out"], 0), strict=True
            ):
                # float32 sums may round one number in hundreds to the next step of the output.
                off = np.abs(one - other)
                assert off.max() <= step + 1e-4
                assert (off > 1e-4).mean() < 0.03


def test_errors_are_those_of_frames_that_set_no_range() -> None:
    given = calibration(1.0)
    found = quantize("small", small_model(), given)
    pairs = [
        (run(small_model(), frame, optimize=True), run(found.model, frame, optimize=True))
        for frame in given.measuring
    ]
    for i, name in enumerate(("out", "mixed")):
        exact = np.stack([one[i] for one, _ in pairs]).astype(np.float64)
        change = np.stack([other[i] for _, other in pairs]) - exact
        error = np.sqrt((change**2).sum() / (exact**2).sum())
        assert 0 < error == pytest.approx(found.record.errors[name], rel=1e-6)


def test_layers_of_the_greatest_error_stay_in_float32() -> None:
    everything = quantize("small", small_model(), calibration(1.0)).record
    assert everything.float_layers == ()
    assert everything.int8_layers == 2
    allowed = 0.9 * max(everything.errors.values())
    steps: list[str] = []
    some = quantize("small", small_model(), calibration(allowed), steps.append)
    assert some.record.float_layers == ("second",), "its output is rounded as well"
    assert some.record.int8_layers == 1
    assert max(some.record.errors.values()) <= allowed == some.record.maximum_error
    assert [step for step in steps if step.endswith("alone")] == [
        f"small: error of layer {number} of 2 alone" for number in (1, 2)
    ]
    conv = next(node for node in some.model.graph.node if node.op_type == "Conv")
    assert {"turned", "second.weight"} <= set(conv.input), "it reads what it read before"
    with pytest.raises(ParityError, match=r"int8 errs by more than 0\.0% in every layer"):
        quantize("small", small_model(), calibration(1e-9))


def test_a_graph_without_products_is_refused() -> None:
    model = small_model()
    del model.graph.node[2:]
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, "H", "W", 3])
    )
    with pytest.raises(InputError, match="no MatMul or Conv with constant weights"):
        quantize("small", model, calibration())


def test_pointwise_convolutions_become_products_and_others_stay() -> None:
    random = np.random.RandomState(0)
    tensors = {
        "w": random.standard_normal((5, 3, 1, 1)).astype(np.float32),
        "b": random.standard_normal(5).astype(np.float32),
        "strided": random.standard_normal((5, 5, 1, 1)).astype(np.float32),
        "depthwise": random.standard_normal((5, 1, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["one"], "one"),
        helper.make_node("Conv", ["x", "w"], ["again"], "again"),
        helper.make_node("Add", ["one", "again"], ["sum"], "sum"),
        helper.make_node("Conv", ["sum", "depthwise"], ["own"], "own", group=5),
        helper.make_node("Conv", ["own", "strided"], ["y"], "y", strides=[2, 1]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "convolutions",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 7, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 4, 5])],
            [numpy_helper.from_array(value, name) for name, value in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    changed = products_of_pointwise(model)
    onnx.checker.check_model(changed, full_check=True)
    kinds = {node.name: node.op_type for node in changed.graph.node}
    assert kinds["one"] == kinds["again"] == "MatMul"
    assert kinds["own"] == kinds["y"] == "Conv"
    assert "w" not in {tensor.name for tensor in changed.graph.initializer}
    x = random.standard_normal((2, 3, 7, 5)).astype(np.float32)
    one, other = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )[0]
        for m in (model, changed)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def write_frames(folder: Path, count: int, size: tuple[int, int] = (90, 157)) -> Path:
    """A folder of images: rectangles over noise, which move."""
    folder.mkdir(parents=True)
    random = np.random.RandomState(5)
    ground = random.randint(60, 120, (*size, 3)).astype(np.uint8)
    for t in range(count):
        picture = ground.copy()
        picture[10:40, 2 * t : 2 * t + 30] = (230, 60, 40 + t)
        Image.fromarray(picture).save(folder / f"{t:05}.png")
    return folder


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 31, 32, 100])
def test_frames_of_an_unknown_length_are_spread_evenly(length: int) -> None:
    kept: list[int] = []

    def fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        kept.append(1)
        return image

    images = (np.full((1, 1, 3), i, np.uint8) for i in range(length))
    found = [int(image[0, 0, 0]) for image in spread_frames(images, 4, fitted)]
    assert found[0] == 0
    assert len(found) == min(length, 4)
    assert len(set(found)) == len(found), "no frame is taken twice"
    assert found == sorted(found)
    gaps = np.diff(found)
    assert length <= 4 or gaps.max() <= 2 * gaps.min() <= 2 * length / 3
    assert len(kept) <= 8 + 4 * np.log2(max(length, 8) / 8) + 4, "few frames are resized"


def test_frames_are_fitted_as_in_a_stream(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "video", 5)
    network = Pan2024(preset("tiny"))
    found = read_calibration(CalibrationOptions(str(folder), 4), network, None)
    settings = StreamSettings(size=preset("tiny").input_size)
    geometry = network.geometry((90, 157), settings, None)
    expected = [
        resize_frame(np.asarray(Image.open(file)), geometry) for file in sorted(folder.iterdir())
    ]
    assert found.source == "video"
    assert [f.tobytes() for f in found.calibrating] == [
        expected[0].tobytes(),
        expected[3].tobytes(),
    ]
    assert len(found.measuring) == 2
    fixed = read_calibration(CalibrationOptions(str(folder), 2), network, (64, 96))
    assert fixed.calibrating[0].shape == (1, 64, 96, 3)


def test_frames_of_a_data_set_come_from_all_its_videos(tmp_path: Path) -> None:
    split = tmp_path / "valid"
    for video, size in (("a", (64, 96)), ("b", (96, 64))):
        write_frames(split / "JPEGImages" / video, 4, size)
    (split / "meta_expressions.json").write_text('{"videos": {}}')
    found = read_calibration(CalibrationOptions(str(split), 4), Pan2024(preset("tiny")), None)
    shapes = [image.shape[1:3] for image in (*found.calibrating, *found.measuring)]
    assert {height > width for height, width in shapes} == {True, False}
    assert found.source == "valid"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (None, "needs frames like those that the network will see.*pass --calibration VIDEO"),
        (CalibrationOptions("nothing"), "nothing does not exist; give a video file"),
        (CalibrationOptions("rtsp://camera/1"), "has no end, and frames are spread over the whole"),
        (CalibrationOptions("-"), "has no end"),
        (CalibrationOptions(".", 8, 0.0), "--maximum-int8-error must be above 0, found 0"),
        (CalibrationOptions(".", 8, float("nan")), "--maximum-int8-error must be above 0, found n"),
        (CalibrationOptions(".", 1), "--calibration-frames must be at least 2, found 1"),
    ],
)
def test_refusals_before_any_work(options: CalibrationOptions | None, error: str) -> None:
    with pytest.raises(InputError, match=error):
        check_calibration("int8", options)


def test_frames_without_int8_are_refused() -> None:
    check_calibration("fp16", None)
    with pytest.raises(InputError, match="--calibration is for --precision int8, and this is fp16"):
        check_calibration("fp16", CalibrationOptions("."))


def test_too_few_frames_are_refused(tmp_path: Path) -> None:
    network = Pan2024(preset("tiny"))
    one = write_frames(tmp_path / "one", 1)
    with pytest.raises(InputError, match=r"one holds 1 frame, needed: at least 2; give a longer"):
        read_calibration(CalibrationOptions(str(one)), network, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds neither"):
        read_calibration(CalibrationOptions(str(tmp_path / "empty")), network, None)
    (tmp_path / "no.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match=r"no\.mp4"):
        read_calibration(CalibrationOptions(str(tmp_path / "no.mp4")), network, None)


def test_the_command_refuses_int8_without_frames(rvos: Call, tmp_path: Path) -> None:
    common = ("export", "tiny", "--random-weights", "--out", str(tmp_path / "b"))
    for options, error in (
        (("--precision", "int8"), "--precision int8 needs frames"),
        (("--calibration", str(tmp_path)), "--calibration is for --precision int8"),
        (("--calibration-frames", "8"), "--calibration-frames needs --calibration"),
        (("--maximum-int8-error", "0.1"), "--maximum-int8-error needs --calibration"),
        (
            ("--precision", "int8", "--calibration", str(tmp_path), "--opset", "16"),
            "--opset 16 cannot be written in int8: needs 17 to 20",
        ),
    ):
        result = rvos(*common, *options)
        assert result.code == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert error in result.stderr
        assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network at random weights, with a backbone of int8 and weights stored as float16."""
    folder = tmp_path_factory.mktemp("int8")
    video = write_frames(folder / "video", 12)
    given = Weights(random=True, precision="int8", store="fp16")
    config = replace(preset("tiny"), input_size=(64, 96))
    options = CalibrationOptions(str(video), 12)
    return export_bundle(config, folder / "bundle", given, calibration=options).path


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_verify_passes_on_every_cpu_back_end(int8_bundle: Path, backend: str) -> None:
    results = verify(open_bundle(int8_bundle), make_backend(backend, "cpu"))
    assert [result.name for result in results if not result.passed] == []


@pytest.mark.slow
def test_the_manifest_says_what_is_int8_and_what_is_not_proved(int8_bundle: Path) -> None:
    bundle = open_bundle(int8_bundle)
    assert bundle.precision == "int8"
    assert {name: spec.precision for name, spec in bundle.graphs.items() if name != "backbone"} == {
        name: "fp32" for name in bundle.graphs if name != "backbone"
    }
    assert bundle.graphs["backbone"].precision == "int8"
    assert bundle.manifest.parity.not_proved == NOT_PROVED["int8"]
    record = bundle.manifest.quantization
    assert isinstance(record, QuantizationRecord)
    assert (record.graph, record.source) == ("backbone", "video")
    assert (record.calibrating_frames, record.measuring_frames) == (6, 6)
    assert record.int8_layers + len(record.float_layers) == 28
    assert record.int8_layers >= 12
    assert set(record.errors) == {"res2", "res3", "res4", "res5"}
    assert max(record.errors.values()) <= record.maximum_error
    names = {check.name for check in bundle.manifest.parity.checks}
    assert {"backbone H64 W96 res2, in float32", "backbone H64 W96 res2"} <= names


@pytest.mark.slow
def test_products_are_int8_and_the_rest_is_float(int8_bundle: Path) -> None:
    model = onnx.load(int8_bundle / "backbone.onnx")
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    record = open_bundle(int8_bundle).manifest.quantization
    assert isinstance(record, QuantizationRecord)
    int8_convolutions, layers = set(), 0
    for node in model.graph.node:
        made_by = [makers[name].op_type if name in makers else "" for name in node.input]
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[1]].shape == (), "one scale a tensor"
            assert constants[node.input[2]].dtype == np.int8
            assert constants[node.input[2]] == 0
        elif made_by[:2] == ["DequantizeLinear"] * 2:
            layers += 1
            assert node.op_type in ("MatMul", "Conv")
            int8_convolutions |= set(node.output) if node.op_type == "Conv" else set()
            weight = makers[node.input[1]]
            assert constants[weight.input[0]].dtype == np.int8
            channels = constants[weight.input[0]].shape[-1 if node.op_type == "MatMul" else 0]
            assert constants[weight.input[1]].shape == (channels,), "a scale for every channel"
            assert not constants[weight.input[2]].any()
        elif node.op_type != "DequantizeLinear":
            pairs = [makers[name] for name in node.input if name in makers]
            for pair in pairs:
                if pair.op_type == "DequantizeLinear":
                    rounded = makers[pair.input[0]].input[0]
                    assert rounded in int8_convolutions, "only their outputs are rounded"
    assert layers == record.int8_layers
    assert {"LayerNormalization", "Erf"} <= {node.op_type for node in model.graph.node}


@pytest.mark.slow
def test_a_fixed_bundle_and_another_opset_pass_their_checks(tmp_path: Path) -> None:
    video = write_frames(tmp_path / "video", 4)
    form = GraphForm(opset=20, static=StaticShapes(64, 96, 2, 8))
    report = export_bundle(
        preset("tiny"),
        tmp_path / "bundle",
        Weights(random=True, precision="int8"),
        form=form,
        calibration=CalibrationOptions(str(video), 4),
    )
    assert all(result.passed for result in report.results)
    assert report.quantization is not None
    model = onnx.load(report.path / "backbone.onnx")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [20]
    made = {output for node in model.graph.node for output in node.output}
    assert made <= {value.name for value in (*model.graph.value_info, *model.graph.output)}


@pytest.mark.slow
def test_tensorrt_rtx_parses_the_int8_products(int8_bundle: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    network_of_trt = rtx.Builder(rtx.Logger(rtx.Logger.ERROR)).create_network(
        1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    from rvos_deploy.bundle.onnx_file import OnnxFile
    from rvos_deploy.engines.onnx_source import read_onnx

    parser = rtx.OnnxParser(network_of_trt, rtx.Logger(rtx.Logger.ERROR))
    source = read_onnx(OnnxFile(int8_bundle / "backbone.onnx"))
    assert parser.parse(source.content), parser.get_error(0).desc()
    kinds = [network_of_trt.get_layer(i).type for i in range(network_of_trt.num_layers)]
    record = open_bundle(int8_bundle).manifest.quantization
    assert isinstance(record, QuantizationRecord)
    assert kinds.count(rtx.LayerType.QUANTIZE) >= record.int8_layers


@pytest.mark.slow
def test_export_and_inspect_print_the_layers_and_the_error(
    rvos: Call, int8_bundle: Path, tmp_path: Path
) -> None:
    result = rvos("inspect", int8_bundle, "--json", tmp_path / "i.json")
    assert result.code == 0
    text = " ".join(result.stdout.split())
    assert "layers of backbone" in text
    assert "6 frames of video" in text
    saved = json.loads((tmp_path / "i.json").read_text())
    assert saved["manifest"]["quantization"]["graph"] == "backbone"
