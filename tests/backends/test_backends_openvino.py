"""Test the OpenVINO back end, with the CPU kernel and without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threads_of_a_graph import assert_threads_get_their_own_outputs

import rvos_deploy as rvos
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.errors import BackendError, BundleError
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip, probe_inputs
from rvos_deploy.parity.verification import verify
from rvos_deploy.runtime.backends.base import Graph, Session
from rvos_deploy.runtime.backends.registry import make_backend

pytest.importorskip("openvino")

from rvos_deploy.runtime.backends.openvino import backend as module

AXES = {"H": 64, "W": 96, "E": 2, "L": 9, "M": 4}


@pytest.fixture(params=["kernel", "function body"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether deformable attention runs by the kernel, or as where none was built."""
    if request.param == "function body":
        monkeypatch.setattr(kernel, "_library", lambda: None)
    elif not kernel.available():
        pytest.skip("the CPU kernel was not built: there was no C++ compiler")
    return str(request.param)


def test_all_checks_of_a_bundle_pass(tiny_bundle: Path, attention: str) -> None:
    backend = make_backend("openvino")
    assert (backend.describe()["deformable_attention"] == "function body") == (
        attention == "function body"
    )
    assert all(result.passed for result in verify(open_bundle(tiny_bundle), backend))


@pytest.mark.parametrize(
    "name",
    [
        "online_refer_bundle",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("tiny_bundle_fp16", "static_bundle")
        ),
    ],
)
def test_all_checks_of_other_bundles_pass(name: str, request: pytest.FixtureRequest) -> None:
    bundle = open_bundle(request.getfixturevalue(name))
    assert all(result.passed for result in verify(bundle, make_backend("openvino")))


def clip_masks(bundle: Path, backend: str, mode: Any) -> NDArray[np.bool_]:
    settings = rvos.StreamSettings(mode=mode, size=PROBE_BOX, fallback="top1")
    masks = []
    with (
        rvos.load(bundle, backend=backend) as segmenter,
        segmenter.stream(["the disc"], settings) as stream,
    ):
        for index, frame in enumerate(probe_clip(8)):
            masks += [result.masks[0] for result in stream.push(frame)]
            if index == 3:
                stream.add_expression("the square moving to the right")
        masks += [result.masks[0] for result in stream.flush()]
    return np.stack(masks)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_masks_are_those_of_onnxruntime(tiny_bundle: Path, mode: str, attention: str) -> None:
    found = clip_masks(tiny_bundle, "openvino", mode)
    wanted = clip_masks(tiny_bundle, "onnxruntime", mode)
    # Sums of another order move a pixel whose logit is near zero.
    assert (found != wanted).mean() < 1e-3
    assert 0.001 < found.mean() < 0.999
    assert np.array_equal(clip_masks(tiny_bundle, "openvino", mode), found), "another run differs"


def opened(bundle: Path, name: str) -> Session:
    return make_backend("openvino").open(open_bundle(bundle), [name])


def sizes_of(graph: Graph) -> list[bool]:
    """Which compiled models hold fixed sizes, the last used last."""
    assert isinstance(graph, module.OpenVinoGraph)
    return [sizes is not None for sizes in graph._compiled]


def test_sizes_that_repeat_are_compiled_and_few_are_kept(tiny_bundle: Path) -> None:
    with opened(tiny_bundle, "backbone") as session:
        graph = session.graphs["backbone"]

        def run(side: int) -> dict[str, Any]:
            axes = {"H": side, "W": 96}
            return graph.run(probe_inputs(graph.spec, axes, 3))

        first = run(64)
        assert sizes_of(graph) == [False]
        for _ in range(module.REPEATS - 1):
            again = run(64)
        assert sizes_of(graph) == [False, True]
        for name, value in first.items():
            scale = np.abs(value).max()
            assert np.abs(again[name] - value).max() <= 1e-5 * scale, "fixed sizes change numbers"
        run(96)
        assert sizes_of(graph) == [True, False]
        run(64)
        assert sizes_of(graph) == [False, True], "a size that is kept is used at once"
        for side in (96, 128, 160, 192, 224):
            for _ in range(module.REPEATS):
                run(side)
        assert len(sizes_of(graph)) == module.COMPILED


def test_fixed_sizes_that_compute_something_else_are_not_used(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tiny_bundle, "mask_head") as session:
        graph = session.graphs["mask_head"]
        assert isinstance(graph, module.OpenVinoGraph)
        inputs = probe_inputs(graph.spec, {"E": 2, "H": 64, "W": 96}, 1)
        wanted = graph.run(inputs)["mask_logits"]
        tried = []

        def wrong(model: Any, arrays: Any, open_axis: str | None) -> Any:
            tried.append(open_axis)
            import openvino

            # A real model of the same inputs and outputs, whose numbers are others.
            broken = model.clone()
            result = broken.outputs[0].get_node().input_value(0)
            doubled = openvino.opset13.multiply(result, np.float32(1.5)).output(0)
            doubled.get_tensor().set_names({"mask_logits"})
            return graph._core.compile_model(
                openvino.Model([doubled], broken.get_parameters()), "CPU", graph._settings
            )

        monkeypatch.setattr(graph, "_compile_fixed", wrong)
        for _ in range(module.REPEATS - 2):
            graph.run(inputs)
        assert not tried
        with pytest.warns(RuntimeWarning, match="other numbers in mask_head"):
            found = graph.run(inputs)["mask_logits"]
        assert tried == [None, module.EXPRESSIONS]
        assert np.array_equal(found, wanted)
        graph.run(inputs)  # without another warning or trial
        assert len(tried) == 2


def test_threads_that_share_a_graph_get_their_own_outputs(tiny_bundle: Path) -> None:
    with opened(tiny_bundle, "frame_decoder") as session:
        graph = session.graphs["frame_decoder"]
        inputs = [probe_inputs(graph.spec, AXES, seed) for seed in range(6)]
        assert_threads_get_their_own_outputs(graph, inputs)


def test_weights_in_a_separate_file_are_read(tiny_bundle: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bundle = open_bundle(tiny_bundle)
    spec = bundle.graphs["text_encoder"]
    model = onnx.load(bundle.graph_file("text_encoder").path)
    path = tmp_path / "text_encoder.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=256
    )
    inputs = probe_inputs(spec, {"E": 2, "L": 9}, 3)
    outputs = []
    for file in (OnnxFile(path), bundle.graph_file("text_encoder")):
        with module.OpenVinoBackend().open_files([(spec, file)]) as session:
            outputs.append(session.graphs[spec.name].run(inputs))
    for name, value in outputs[0].items():
        assert np.array_equal(value, outputs[1][name]), name


def test_run_records_the_back_end(
    tiny_bundle: Path, tmp_path: Path, rvos: Any, video: Path
) -> None:
    result = rvos(
        "run", video, "the disc", "--bundle", tiny_bundle, "--backend", "openvino",
        "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "openvino" in json.dumps(record)


def test_a_file_that_was_changed_is_the_bundles_error(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    with (tmp_path / "bundle" / "mask_head.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(BundleError, match=r"mask_head\.onnx"):
        make_backend("openvino").open(bundle, ["mask_head"])


def test_what_cannot_be_opened_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    spec = bundle.graphs["mask_head"]
    file = tmp_path / "mask_head.onnx"
    file.write_bytes(b"\x08\x09" + bytes(100))
    with pytest.raises(BackendError, match=r"^openvino \S+ cannot load mask_head: .") as caught:
        module.OpenVinoBackend().open_files([(spec, OnnxFile(file))])
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="openvino has no device 'cuda'"):
        make_backend("openvino", "cuda")
    session = opened(tiny_bundle, "mask_head")
    session.close()
    with pytest.raises(BackendError, match="mask_head was closed"):
        session.graphs["mask_head"].run(probe_inputs(spec, {"E": 1, "H": 64, "W": 96}, 1))


def test_bfloat16_bundles_are_refused(tiny_bundle: Path) -> None:
    from dataclasses import replace

    bundle = open_bundle(tiny_bundle)
    spec = replace(bundle.graphs["mask_head"], precision="bf16")
    with pytest.raises(BackendError, match="mask_head is a bfloat16 graph"):
        module.OpenVinoBackend().open_files([(spec, bundle.graph_file("mask_head"))])
