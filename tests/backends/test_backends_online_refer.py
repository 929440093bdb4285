"""Test OnlineRefer's stream on the device: the tracks stay there, and frames may come from there.

The stand-ins of ``test_backends_tensorrt.py`` run the engines; ONNX Runtime on the CPU tests
binding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from host_kernels import host_library
from recording_cuda import Gpu
from stand_in_engines import add_engines, break_engine

from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.tensor import to_device
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeGraph
from rvos_deploy.runtime.backends.onnxruntime.binding import OrtTensor, run_bound
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.frames import Frame

if TYPE_CHECKING:
    from recording_tensorrt import FakeTensorRt

TEXTS = ["the square moving to the right", "the disc"]
TRACKS = {"track_content", "track_position", "track_box"}
SETTINGS = {
    "online": StreamSettings(size=PROBE_BOX),
    "lookahead": StreamSettings(size=PROBE_BOX, lookahead=2),
    "offline": StreamSettings(size=PROBE_BOX, mode="offline"),
    "spilled": StreamSettings(size=PROBE_BOX, mode="offline", mask_budget=0),
}


@pytest.fixture
def engines(online_refer_bundle: Path, tmp_path: Path) -> Bundle:
    """Give the fixture ``tensorrt`` this family's engines."""
    return add_engines(online_refer_bundle, tmp_path / "bundle")


Masks = list[tuple[tuple[int, ...], np.ndarray]]


def changing(segmenter: Segmenter, settings: StreamSettings) -> Masks:
    """The expressions and masks of seven frames, while expressions join and leave."""
    clip = probe_clip(7)
    with segmenter.stream(TEXTS, settings) as stream:
        results = [r for frame in clip[:2] for r in stream.push(frame)]
        stream.add_expression("everything that is red")
        results += [r for frame in clip[2:5] for r in stream.push(frame)]
        stream.remove_expression(0)
        results += [r for frame in clip[5:] for r in stream.push(frame)]
        results += list(stream.flush())
    return [(result.expressions, result.masks) for result in results]


def assert_equal(found: Masks, truth: Masks) -> None:
    assert [numbers for numbers, _ in found] == [numbers for numbers, _ in truth]
    assert len(truth) == 7
    for (_, some), (_, expected) in zip(found, truth, strict=True):
        assert (some == expected).all()
    assert any(0 < expected.mean() < 1 for _, expected in truth)


@pytest.mark.parametrize(
    ("name", "place"),
    [*((name, "host") for name in SETTINGS), ("online", "device"), ("offline", "device")],
)
def test_a_stream_gives_the_masks_that_onnxruntime_gives(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, name: str, place: str
) -> None:
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = changing(segmenter, SETTINGS[name])
    with load(engines.path, backend="tensorrt") as segmenter:
        found = changing(segmenter, replace(SETTINGS[name], masks=place))
    assert_equal(found, truth)
    gpu.check_clean()


def sizes(bundle: Bundle, names: set[str], axes: dict[str, int]) -> int:
    """Bytes of some inputs or outputs of the frame decoder."""
    spec = bundle.graphs["frame_decoder"]
    tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    shapes = {name: tensors[name].sizes(axes) for name in names}
    return sum(int(np.prod(shapes[n])) * np.dtype(tensors[n].dtype).itemsize for n in names)


@pytest.mark.parametrize("place", ["host", "device"])
def test_tracks_and_frames_stay_on_the_device(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, place: str
) -> None:
    """Of a frame, scores and the bits of masks come down; a frame on the device does not go up."""
    host_library()
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        with segmenter.stream(TEXTS, SETTINGS["online"]) as stream:
            truth = [result.masks for frame in probe_clip(6) for result in stream.push(frame)]
        length = max(len(segmenter.encode_text(text).tokens) for text in TEXTS)
    device = acquire_device(gpu.libraries)
    found, copied = [], []
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(TEXTS, SETTINGS["online"]) as stream,
    ):
        for index, image in enumerate(probe_clip(6)):
            frame = to_device(device, image) if place == "device" else image
            gpu.machine.copied.update(up=0, down=0)
            (result,) = stream.push(Frame(index, float(index), frame))
            found.append(result.masks)
            copied.append(dict(gpu.machine.copied))
            del frame, result
    device.release()
    for one, other in zip(found, truth, strict=True):
        assert (one == other).all()
    height, width = PROBE_BOX
    axes = {"H": height, "W": width, "E": 2, "L": length}
    inputs = {"text_tokens", "text_padding", "joined", "preference"}
    resized = height * width * 3 if place == "host" else 0
    packed = 2 * 90 * 20  # of two masks of the clip, 90 rows of 157 bits each
    for moved in copied[1:]:
        assert moved["up"] == resized + sizes(engines, inputs, axes)
        assert moved["down"] == (
            sizes(engines, {"scores", "best"}, axes)
            + packed
            + 2 * height // 4  # whether each row of the mask logits holds numbers
        )
    gpu.check_clean()


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize(
    ("graph", "output", "found_in"),
    [
        ("backbone", "res5", "frame 0: graph frame_decoder gave scores"),
        ("text_encoder", "text_tokens", "expression 'the disc': graph text_encoder gave text_to"),
        ("frame_decoder", "scores", "frame 0: graph frame_decoder gave scores"),
        ("frame_decoder", "next_content", "frame 1: graph frame_decoder gave scores"),
        ("frame_decoder", "next_box", "frame 1: graph frame_decoder gave mask_logits"),
        ("frame_decoder", "mask_logits", "frame 0: graph frame_decoder gave mask_logits"),
    ],
)
def test_nan_is_an_error(
    gpu: Gpu,
    tensorrt: FakeTensorRt,
    engines: Bundle,
    graph: str,
    output: str,
    found_in: str,
    place: str,
) -> None:
    """A track of NaN, which the host never sees, shows in the next frame."""
    break_engine(engines, graph, output)
    settings = replace(SETTINGS["online"], masks=place)
    with load(engines.path, backend="tensorrt") as segmenter:

        def run() -> None:
            with segmenter.stream(["the disc"], settings) as stream:
                for frame in probe_clip(3):
                    stream.push(frame)

        with pytest.raises(BackendError, match=f"^{found_in}"):
            run()
    gpu.check_clean()


@pytest.mark.parametrize("name", ["online", "offline"])
def test_a_stream_over_bound_sessions_gives_the_same_masks(
    online_refer_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The calls are those of a GPU, the memory is the host's."""
    bundle, kinds = open_bundle(online_refer_bundle), dict[str, set[type]]()

    def bound(self, inputs, axes):  # type: ignore[no-untyped-def]
        for tensor, value in inputs.items():
            kinds.setdefault(tensor, set()).add(type(value))
        return run_bound(self._session, ("cpu", 0), inputs, bundle.graphs[self.spec.name].outputs)

    with load(online_refer_bundle, threads=1) as segmenter:
        truth = changing(segmenter, SETTINGS[name])
    with load(online_refer_bundle, threads=1) as segmenter:
        monkeypatch.setattr(OnnxRuntimeGraph, "_run", bound)
        found = changing(segmenter, SETTINGS[name])
    assert_equal(found, truth)
    assert kinds["res2"] == {OrtTensor}
    # Zeros at first, and rows that moved as an expression joined, may be the host's.
    assert all(OrtTensor in kinds[track] for track in TRACKS)
