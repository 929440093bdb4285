"""What is no number is an error that names the graph and the frame, in every back end."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from broken_graphs import copy_bundle, poison_output, poison_weight, sign_again

from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip
from rvos_deploy.graph_io.tensors import FinishedCopy, Tensor
from rvos_deploy.networks.pan2024.contract import GRAPHS
from rvos_deploy.runtime.backends.base import Backend, Graph, Session
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.finite import MapCheck, require_finite
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.pending_masks import PendingMasks
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings

SETTINGS = StreamSettings(size=PROBE_BOX, fallback="top1")
TEXT = "the disc"
Tamper = Callable[[str, dict[str, Tensor]], dict[str, Tensor]]


def segment(segmenter: Segmenter, settings: StreamSettings = SETTINGS) -> list[FrameMasks]:
    with segmenter.stream([TEXT], settings) as stream:
        results = [result for frame in probe_clip(3) for result in stream.push(frame)]
        return results + list(stream.flush())


@pytest.mark.parametrize("backend", ["onnxruntime", "bf16-reference"])
@pytest.mark.parametrize(
    ("graph", "output", "occasion"),
    [
        ("backbone", "res4", "frame 0"),
        ("text_encoder", "sentence", "expression 'the disc'"),
        ("frame_decoder", "mask_features", "frame 0"),
        ("frame_decoder", "slot_logits", "frame 0"),
        ("video_decoder", "scores", "frame 0"),
        ("mask_head", "mask_logits", "frame 0"),
    ],
)
def test_a_bundle_that_gives_nan(
    tiny_bundle: Path, tmp_path: Path, backend: str, graph: str, output: str, occasion: str
) -> None:
    folder = copy_bundle(tiny_bundle, tmp_path / "broken")
    poison_output(folder / f"{graph}.onnx", output, np.nan)
    sign_again(folder)
    with load(folder, backend=backend) as segmenter, pytest.raises(BackendError) as error:
        segment(segmenter)
    assert str(error.value).startswith(
        f"{occasion}: graph {graph} gave {output} that are no finite"
    )
    assert "verify" in str(error.value)
    assert "\n" not in str(error.value)


class Tampering(Backend):
    """ONNX Runtime, whose outputs are changed; ``on_device`` hides that they are NumPy's."""

    name = "tampering"

    def __init__(self, tamper: Tamper, *, on_device: bool = False) -> None:
        self._backend, self._tamper, self._on_device = OnnxRuntimeBackend(), tamper, on_device

    def open(self, bundle: Bundle, graphs: Sequence[str] | None = None) -> Session:
        session = self._backend.open(bundle, graphs)
        for graph in session.graphs.values():
            self._change(graph)
        return session

    def _change(self, graph: Graph) -> None:
        run, tamper, on_device = graph._run, self._tamper, self._on_device

        def changed(inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
            arrays = {name: np.asarray(value) for name, value in inputs.items()}
            outputs = tamper(graph.spec.name, run(arrays, axes))
            return {n: OnDevice(x) for n, x in outputs.items()} if on_device else outputs

        graph._run = changed  # type: ignore[method-assign]

    def describe(self) -> dict[str, str]:
        return {"name": self.name}


class OnDevice:
    """A tensor that is no NumPy array, as back ends with a device give it."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self._array


def from_frame(number: int, graph: str, output: str, value: float) -> Tamper:
    """Put a value into one element of an output from frame ``number`` on."""
    frames = 0

    def tamper(name: str, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal frames
        if name == graph:
            if frames >= number:
                outputs = {**outputs, output: outputs[output].copy()}
                outputs[output].flat[outputs[output].size // 3] = value
            frames += 1
        return outputs

    return tamper


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    ("graph", "output"),
    [
        ("frame_decoder", "slot_values"),
        ("frame_decoder", "slot_logits"),
        ("frame_decoder", "slot_position"),
        ("frame_decoder", "slot_content"),
        ("frame_decoder", "slot_score"),
        ("video_decoder", "scores"),
        ("mask_head", "mask_logits"),
    ],
)
def test_one_number_of_one_frame(
    tiny_bundle: Path, graph: str, output: str, on_device: bool, value: float
) -> None:
    backend = Tampering(from_frame(2, graph, output, value), on_device=on_device)
    with (
        Segmenter(open_bundle(tiny_bundle), backend) as segmenter,
        pytest.raises(BackendError, match=rf"^frame 2: graph {graph} gave {output} that are no"),
    ):
        segment(segmenter)


@pytest.mark.parametrize("on_device", [False, True])
def test_hidden_pixels_may_be_minus_infinity(tiny_bundle: Path, on_device: bool) -> None:
    backend = Tampering(from_frame(0, "mask_head", "mask_logits", -np.inf), on_device=on_device)
    with Segmenter(open_bundle(tiny_bundle), backend) as segmenter:
        assert len(segment(segmenter)) == 3


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_stream_that_failed_gives_nothing_more(tiny_bundle: Path, mode: str) -> None:
    """Half a frame is in its memories: it must not go on as if nothing had been."""
    backend = Tampering(from_frame(1, "frame_decoder", "slot_values", np.nan))
    clip = probe_clip(4)
    with Segmenter(open_bundle(tiny_bundle), backend) as segmenter:
        with segmenter.stream([TEXT], replace(SETTINGS, mode=mode)) as stream:
            stream.push(clip[0])
            with pytest.raises(BackendError, match="frame 1"):
                stream.push(clip[1])
            for use in (lambda: stream.push(clip[3]), stream.flush, lambda: stream.expressions):
                with pytest.raises(InputError, match=r"failed before .*frame 1.*open another"):
                    use()
        with pytest.raises(BackendError, match="frame 0"):
            segment(segmenter)


def test_masks_that_are_on_their_way_fail_where_they_are_read() -> None:
    check = MapCheck(FinishedCopy([np.array([True, False])]), "mask_head", "frame 5")
    coming = PendingMasks(FinishedCopy([np.zeros((2, 3, 3), np.bool_)]), check)
    for _ in range(2):
        with pytest.raises(BackendError, match="frame 5: graph mask_head"):
            coming.get()
    check = MapCheck(FinishedCopy([np.array([True])]), "mask_head", "frame 6")
    sound = PendingMasks(FinishedCopy([np.ones(1)]), check)
    assert sound.get() is sound.get()


def test_the_hosts_check_of_maps(segmenter: Segmenter) -> None:
    maps = np.zeros((5, 2, 3), np.float32)
    maps[1, 0, 2], maps[2, 1, 1], maps[3] = np.nan, np.inf, -np.inf
    ops = segmenter._session.ops
    (sound,) = ops.finite_maps(maps).arrays()
    assert sound.tolist() == [True, False, False, True, True]
    (none,) = ops.finite_maps(maps[:0]).arrays()
    assert none.shape == (0,)


def test_half_precision_and_other_types() -> None:
    require_finite("g", {"a": np.full(3, 65504, np.float16), "b": np.ones(2, np.int64)}, "frame 0")
    require_finite("g", {"empty": np.zeros((0, 3), np.float32)}, "frame 0")
    with pytest.raises(BackendError):
        require_finite("g", {"a": np.array([1, -np.inf], np.float16)}, "frame 0")


@pytest.fixture(scope="module")
def torch_backend(tiny_bundle: Path) -> Callable[[Bundle], Backend]:
    pytest.importorskip("torch")
    from rvos_deploy.benchmarks.torch_backend import TorchBackend

    return lambda bundle: TorchBackend(bundle, 1)


def test_pytorch_as_a_back_end(
    tiny_bundle: Path, torch_backend: Callable[[Bundle], Backend]
) -> None:
    bundle = open_bundle(tiny_bundle)
    backend = torch_backend(bundle)
    graphs = backend.graphs  # type: ignore[attr-defined]
    for name, parameter in graphs["video_decoder"].module.named_parameters():
        if ".video_decoder.mask_embedding." in f".{name}":
            parameter.data.fill_(np.nan)
    with (
        Segmenter(bundle, backend) as segmenter,
        pytest.raises(BackendError, match=r"^frame 0: graph video_decoder gave"),
    ):
        segment(segmenter)


def test_verify_reports_it_and_ends(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = copy_bundle(tiny_bundle, tmp_path / "broken")
    poison_output(folder / "video_decoder.onnx", "scores", np.nan)
    sign_again(folder)
    result = rvos("verify", folder, "--json", tmp_path / "checks.json")
    assert result.code == 1
    checks = json.loads((tmp_path / "checks.json").read_text(encoding="utf-8"))["checks"]
    failed = [check["name"] for check in checks if not check["passed"]]
    assert len(failed) == 5
    assert all(name.startswith("video_decoder ") for name in failed[:4])
    assert failed[4].startswith("masks of a clip")
    assert checks[-1]["j_and_f"] == 0.0


MOST_SLIPPED = 6
"""Of frame_decoder's weights: a bias and a product for the offsets of each of three layers."""


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("graph", GRAPHS)
def test_any_weight(tiny_bundle: Path, tmp_path: Path, graph: str, value: float) -> None:
    """A number in the middle of every weight: an error, or the same masks where it is not used.

    Infinity may be lawful on the way (a saturated gate): then only the numbers must be numbers. NaN
    may end inside a graph in one place: a sampling location of the deformable attention lies
    outside of every map then, where zero is read.
    """
    with load(tiny_bundle) as segmenter:
        truth = segment(segmenter)
    index = refused = unused = 0
    slipped: list[str] = []
    while True:
        folder = copy_bundle(tiny_bundle, tmp_path / f"{index}")
        name = poison_weight(folder / f"{graph}.onnx", index, value)
        if name is None:
            break
        sign_again(folder)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with load(folder) as segmenter:
                    found = segment(segmenter)
        except BackendError:
            refused += 1
        else:
            same = all((a.masks == b.masks).all() for a, b in zip(found, truth, strict=True))
            unused += same
            if not same:
                slipped.append(name)
        for file in folder.iterdir():
            file.unlink()
        index += 1
    print(f"{graph}, {value}: {refused} of {index} refused, {unused} unused, slipped: {slipped}")
    assert refused > 0
    if np.isnan(value):
        assert len(slipped) <= (MOST_SLIPPED if graph == "frame_decoder" else 0)


@pytest.mark.parametrize("output", ["scores", "mask_logits"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_run_ends_with_one_line(
    rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path, mode: str, output: str
) -> None:
    """No traceback, no empty masks with exit code 0, no result.json, nothing half-written."""
    folder, out = copy_bundle(tiny_bundle, tmp_path / "broken"), tmp_path / "out"
    graph = "video_decoder" if output == "scores" else "mask_head"
    poison_output(folder / f"{graph}.onnx", output, np.nan)
    sign_again(folder)
    result = rvos("run", video, "the dog", "-b", folder, "-o", out, "--mode", mode)
    assert result.code == 2
    assert f"graph {graph} gave {output} that are no finite numbers" in result.error
    assert result.error.startswith("frame ")
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert not {name for name in left if name.startswith(".") or name == "result.json"}
