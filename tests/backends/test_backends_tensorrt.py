"""Test the TensorRT back end on recording stand-ins; ONNX Runtime does the engines' arithmetic.

The tests show order, lifetimes, capture, refusals, and that a whole stream gives ONNX Runtime's
masks. They show nothing of TensorRT's or a GPU's own behaviour.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gpu_fixtures import both_drivers
from host_kernels import host_library
from recording_cuda import Gpu
from stand_in_engines import break_engine

from rvos_deploy.bundle.engine_sidecar import (
    EngineError,
    plan_file,
    sidecar_file,
)
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.engines.engine_parity import PartialEngines
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.probe import PROBE_BOX, probe_clip, probe_inputs
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.networks.pan2024.steps import Pan2024Steps
from rvos_deploy.parity.verification import verify
from rvos_deploy.runtime.backends.base import Session
from rvos_deploy.runtime.backends.cuda import nvrtc
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, to_device
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.backends.tensorrt.backend import TensorRtBackend
from rvos_deploy.runtime.backends.tensorrt.buckets import bucket
from rvos_deploy.runtime.backends.tensorrt.graph import TensorRtGraph
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings

if TYPE_CHECKING:
    from recording_tensorrt import FakeTensorRt

SMALL = {"H": 32, "W": 64, "E": 2, "L": 5, "M": 3}


def opened(bundle: Bundle, *graphs: str, **options: bool) -> Session:
    return TensorRtBackend(**options).open(bundle, graphs)


def to_host(session: Session, tensor: Tensor) -> np.ndarray:
    (array,) = session.ops.to_host([tensor]).arrays()
    return array


def inputs_of(bundle: Bundle, graph: str, seed: int = 0, **axes: int) -> dict[str, np.ndarray]:
    spec = bundle.graphs[graph]
    sizes = {**SMALL, **axes}
    return probe_inputs(spec, {axis.name: sizes[axis.name] for axis in spec.axes}, seed)


def expected(bundle: Bundle, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from recording_tensorrt import open_session

    names = [tensor.name for tensor in bundle.graphs[graph].outputs]
    outputs = open_session(str(bundle.graph_file(graph).path)).run(names, inputs)
    return dict(zip(names, outputs, strict=True))


def enqueued(gpu: Gpu) -> list[str]:
    return [entry[1] for entry in gpu.machine.log if entry[0] == "enqueued"]


def replays(gpu: Gpu) -> int:
    return sum(entry[0] == "replayed" for entry in gpu.machine.log)


@both_drivers
@pytest.mark.parametrize("graph", ["backbone", "text_encoder", "video_decoder", "mask_head"])
def test_plain_captured_and_replayed_runs_give_the_same(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, graph: str
) -> None:
    with opened(engines, graph) as session:
        for seed in range(5):
            inputs = inputs_of(engines, graph, seed)
            found = session.graphs[graph].run(inputs)
            for name, array in expected(engines, graph, inputs).items():
                assert isinstance(found[name], DeviceTensor)
                assert found[name].shape == array.shape
                np.testing.assert_array_equal(to_host(session, found[name]), array)
            del found
        # Plain; again, warm and captured (both enqueued); then replays.
        assert enqueued(gpu) == [graph] * 3
        assert replays(gpu) == 3
    gpu.check_clean()


def test_referenced_results_are_not_overwritten(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """Captured runs write to fixed addresses, so their outputs are copied into buffers of the
    results.
    """
    with opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        many = [inputs_of(engines, "mask_head", seed) for seed in range(14)]
        held = [mask_head.run(inputs)["mask_logits"] for inputs in many]
        assert replays(gpu) == 12
        for inputs, found in zip(many, held, strict=True):
            truth = expected(engines, "mask_head", inputs)["mask_logits"]
            np.testing.assert_array_equal(np.asarray(found), truth)
        del found
        held.clear()
    gpu.check_clean()


def test_outputs_are_the_next_graphs_inputs_without_a_copy(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    with opened(engines, "backbone", "frame_decoder") as session:
        graphs = session.graphs
        text = {
            name: array
            for name, array in inputs_of(engines, "frame_decoder").items()
            if not name.startswith("res")
        }
        for seed in range(6):
            frame = inputs_of(engines, "backbone", seed)
            pyramid = graphs["backbone"].run(frame)
            gpu.machine.copied.update(up=0, down=0)
            found = graphs["frame_decoder"].run({**pyramid, **text})
            assert gpu.machine.copied == {"up": sum(a.nbytes for a in text.values()), "down": 0}
            truth = expected(
                engines, "frame_decoder", {**expected(engines, "backbone", frame), **text}
            )
            queries = to_host(session, found["frame_queries"])
            np.testing.assert_array_equal(queries, truth["frame_queries"])
            assert gpu.machine.copied["down"] == queries.nbytes
            del found, pyramid
        assert replays(gpu) > 3
    gpu.check_clean()


SETTINGS = {
    "online": StreamSettings(size=PROBE_BOX, fallback="top1"),
    "lookahead": StreamSettings(size=PROBE_BOX, fallback="top1", lookahead=2),
    "offline": StreamSettings(size=PROBE_BOX, fallback="top1", mode="offline"),
    "spilled": StreamSettings(size=PROBE_BOX, fallback="top1", mode="offline", mask_budget=0),
}


def masks(segmenter: Segmenter, settings: StreamSettings, frames: int = 5) -> list[np.ndarray]:
    texts = ["the square moving to the right", "the disc"]
    with segmenter.stream(texts, settings) as stream:
        results = [result for frame in probe_clip(frames) for result in stream.push(frame)]
        results += list(stream.flush())
    return [result.masks for result in results]


@both_drivers
@pytest.mark.parametrize("name", SETTINGS)
def test_a_stream_gives_the_masks_that_onnxruntime_gives(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, name: str
) -> None:
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS[name])
    with load(engines.path, backend="tensorrt") as segmenter:
        assert segmenter.backend.describe() == {
            "name": "tensorrt",
            "version": "11.4.0.106",
            "device": "cuda",
            "gpu": "stand-in (compute capability 8.9)",
            "cuda": gpu.driver,
        }
        found = masks(segmenter, SETTINGS[name])
    assert len(found) == len(truth) == 5
    for one, other in zip(found, truth, strict=True):
        assert (one == other).all()
    assert replays(gpu) > 0
    gpu.check_clean()


def test_streams_in_step_share_tensors_on_the_device(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame is decoded once, and both streams read the tensors of the shared graphs."""
    names = ("offline", "online")
    with load(engines.path, backend="tensorrt") as segmenter:
        alone = [masks(segmenter, SETTINGS[name]) for name in names]
    runs: list[str] = []
    run = TensorRtGraph.run

    def counted(graph: TensorRtGraph, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        runs.append(graph.spec.name)
        return run(graph, inputs)

    monkeypatch.setattr(TensorRtGraph, "run", counted)
    texts = ["the square moving to the right", "the disc"]
    found: list[list[np.ndarray]] = [[] for _ in names]
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.streams_in_step(texts, [SETTINGS[name] for name in names]) as streams,
    ):
        for frame in probe_clip(5):
            for held, decided in zip(found, streams.push(frame), strict=True):
                held += [result.masks for result in decided]
        for held, stream in zip(found, streams.streams, strict=True):
            held += [result.masks for result in stream.flush()]
    for one, other in zip(found, alone, strict=True):
        assert np.array_equal(one, other)
    assert (runs.count("backbone"), runs.count("frame_decoder")) == (5, 5)
    assert runs.count("mask_head") == 10
    gpu.check_clean()


def packed_bytes(expressions: int) -> int:
    """Of the probe clip's masks: 90 rows of 157 bits each."""
    return expressions * 90 * 20


def moments(gpu: Gpu, *entry: object) -> list[int]:
    """When something was recorded."""
    return [at for at, found in enumerate(gpu.machine.log) if found[: len(entry)] == entry]


@pytest.mark.parametrize("name", ["online", "lookahead"])
def test_masks_come_down_while_the_next_frame_is_computed(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, name: str
) -> None:
    """A caller who reads late waits for nothing, and the device has its next frame by then."""
    texts = ["the square moving to the right", "the disc"]
    clip = probe_clip(6)
    frame_bytes = 96 * 160 * 3
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS[name])
    kept = []
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(texts, SETTINGS[name]) as stream,
    ):
        lookahead = SETTINGS[name].lookahead
        for number, frame in enumerate(clip[:5]):
            kept += stream.push(frame)
            decided = max(0, number + 1 - lookahead)
            assert len(kept) == decided
            arrived = moments(gpu, "arrived", packed_bytes(2))
            # The newest result is under way, all before are there.
            assert len(arrived) == max(0, decided - 1)
            if arrived:
                # A graph of this frame (its pixels, up first) was queued before the wait.
                assert moments(gpu, "up", frame_bytes)[-1] < arrived[-1]
        kept += list(stream.flush())
    # Stream and segmenter are closed, and not one of the results was read so far.
    assert len(moments(gpu, "arrived", packed_bytes(2))) == 5
    for result, expected_masks in zip(kept, truth, strict=True):
        assert (result.masks == expected_masks).all()
        assert result.masks is result.masks
    gpu.check_clean()


def test_masks_may_be_read_by_another_thread_while_the_stream_goes_on(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS["offline"])
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(["the square moving to the right", "the disc"], SETTINGS["offline"]) as s,
        ThreadPoolExecutor(2) as readers,
    ):
        for frame in probe_clip(5):
            s.push(frame)
        reading = [readers.submit(lambda one: one.masks, result) for result in s.flush()]
        found = [one.result() for one in reading]
    assert all((a == b).all() for a, b in zip(found, truth, strict=True))
    gpu.check_clean()


@pytest.mark.parametrize("name", ["online", "lookahead", "offline"])
def test_masks_may_stay_on_the_device(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, name: str
) -> None:
    texts = ["the square moving to the right", "the disc"]
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS[name])
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(texts, replace(SETTINGS[name], masks="device")) as stream,
    ):
        results = [result for frame in probe_clip(5) for result in stream.push(frame)]
        results += list(stream.flush())
        for result, expected_masks in zip(results, truth, strict=True):
            found = result.device_masks
            assert isinstance(found, DeviceTensor)
            assert found.__cuda_array_interface__["typestr"] == "|b1"
            assert found.shape == expected_masks.shape
            assert (np.asarray(found) == expected_masks).all()
            assert type(result.masks) is np.ndarray
            assert (result.masks == expected_masks).all()
        # Masks that nobody took down were not taken down.
        assert moments(gpu, "arrived", packed_bytes(2)) == []
        del found, result
        results.clear()
    gpu.check_clean()


def test_zero_masks_are_a_tensor(gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle) -> None:
    settings = replace(SETTINGS["online"], masks="device")
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream([], settings) as stream,
    ):
        (result,) = stream.push(probe_clip(1)[0])
        assert isinstance(result.device_masks, DeviceTensor)
        assert result.device_masks.shape == result.masks.shape == (0, 90, 157)
        del result
    gpu.check_clean()


def test_masks_cannot_stay_where_the_kernels_are_missing(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "load_nvrtc", without_nvrtc)
    with (
        pytest.warns(RuntimeWarning, match="NVRTC"),
        load(engines.path, backend="tensorrt") as segmenter,
        pytest.raises(BackendError, match="NVRTC cannot be loaded"),
    ):
        segmenter.stream(["the disc"], replace(SETTINGS["online"], masks="device"))
    gpu.check_clean()


@pytest.mark.parametrize(
    "graphs",
    [("backbone",), ("frame_decoder",), ("video_decoder",), ("mask_head", "frame_decoder")],
)
@pytest.mark.parametrize("name", ["online", "offline"])
def test_engines_of_some_graphs_give_the_same_masks_beside_onnxruntime(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, graphs: tuple[str, ...], name: str
) -> None:
    """``build-engine --graph`` checks engines like this; the host then reads the memory on the
    device.
    """
    reference = OnnxRuntimeBackend(threads=1)
    with Segmenter(engines, reference) as segmenter:
        truth = masks(segmenter, SETTINGS[name])
    with (
        opened(engines, *graphs) as session,
        Segmenter(engines, PartialEngines(session, reference)) as segmenter,
    ):
        found = masks(segmenter, SETTINGS[name])
    assert len(found) == len(truth) == 5
    assert all((one == other).all() for one, other in zip(found, truth, strict=True))
    gpu.check_clean()


def memory_inputs(stream: Stream) -> dict[str, np.ndarray]:
    """Return the video decoder's inputs of the memory."""
    assert isinstance(stream._steps, Pan2024Steps)
    return {name: np.asarray(value) for name, value in stream._steps._memory.read().items()}


def test_the_video_decoder_is_replayed_while_the_memory_is_written(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """Online, the memory keeps one shape and one address from the first frame on."""
    settings = replace(SETTINGS["online"], memory=3, anchors=1)
    texts = ["the square moving to the right", "the disc"]
    ran: list[list[str]] = []
    addresses, found, truth = set(), [], []
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(texts, settings) as stream,
        load(engines.path, backend="onnxruntime", threads=1) as reference,
        reference.stream(texts, settings) as other,
    ):
        for frame in probe_clip(9):
            gpu.machine.log.clear()
            (result,) = stream.push(frame)
            found.append(result.masks)
            ran.append([e[0] for e in gpu.machine.log if e[1:2] == ("video_decoder",)])
            (result,) = other.push(frame)
            truth.append(result.masks)
            assert isinstance(stream._steps, Pan2024Steps)
            addresses.add(stream._steps._memory.read()["memory"].address)  # type: ignore[attr-defined]
            ours, theirs = memory_inputs(stream), memory_inputs(other)
            assert ours["memory"].shape[:2] == (2, 4)
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)
    # Plain; again, warm and captured; then nothing but replays.
    assert ran == [["enqueued"], ["enqueued", "enqueued"], *[["replayed"]] * 7]
    assert len(addresses) == 1
    assert all((a == b).all() for a, b in zip(found, truth, strict=True))
    gpu.check_clean()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_rows_of_the_memory_follow_their_expressions(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, mode: str
) -> None:
    """Expressions come and go, also all at once; a row belongs to its expression, or is empty."""
    # Offline, more frames than the memory has places at first.
    settings = replace(SETTINGS[mode], memory=3 if mode == "online" else None)
    clip = iter(probe_clip(18))

    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(["the square", "the disc"], settings) as stream,
        load(engines.path, backend="onnxruntime", threads=1) as reference,
        reference.stream(["the square", "the disc"], settings) as other,
    ):
        both = (stream, other)

        def push(frames: int) -> None:
            for _ in range(frames):
                frame = next(clip)
                for one in both:
                    one.push(frame)

        def compare(rows: int) -> None:
            ours, theirs = memory_inputs(stream), memory_inputs(other)
            assert len(ours["memory"]) == rows
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)

        push(2)
        # Offline a frame gets its place when the next one is pushed.
        seen = 2 if mode == "online" else 1
        first = memory_inputs(stream)["memory"][1][:seen]
        for one in both:
            one.add_expression("everything")
        push(1)
        for one in both:
            one.remove_expression(0)
        compare(2)
        now = memory_inputs(stream)
        np.testing.assert_array_equal(now["memory"][0][:seen], first)
        assert now["memory_empty"][1].sum() == now["memory_empty"][0].sum() + 2
        push(9)
        for one in both:
            one.add_expression("the square")
            one.remove_expression(2)
        push(2)
        for one in both:
            list(one.flush())
        compare(2)
        for one in both:
            one.remove_expression(1)
            one.remove_expression(3)
        push(1)
        for one in both:
            one.add_expression("the disc")
        push(2)
        for one in both:
            list(one.flush())
        compare(1)
        assert (~memory_inputs(stream)["memory_empty"]).sum() == 2
    gpu.check_clean()


def test_spare_capacity_of_the_memory_needs_no_larger_profile(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """Offline the memory doubles: nine frames have 16 places, of which the engine reads nine."""
    narrow(engines, M=(1, 4, 9))
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS["offline"], 9)
    with load(engines.path, backend="tensorrt") as segmenter:
        found = masks(segmenter, SETTINGS["offline"], 9)
        assert all((a == b).all() for a, b in zip(found, truth, strict=True))
        with pytest.raises(EngineError, match=r"M=1:4:9.*M=10"):
            masks(segmenter, SETTINGS["offline"], 10)
    gpu.check_clean()


@both_drivers
@pytest.mark.parametrize("runs", [0, 1, 3])
def test_everything_is_freed_where_the_wait_fails(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, runs: int
) -> None:
    """After an illegal address every wait fails. Three runs leave a captured one."""
    session = opened(engines, "backbone", "mask_head")
    for _ in range(runs):
        session.graphs["mask_head"].run(inputs_of(engines, "mask_head"))
    assert bool(gpu.machine.graphs) is (runs == 3)
    gpu.machine.failing["Stream.synchronize"] = 0
    with pytest.raises(BackendError, match=r"CUDA failed on GPU 0 .*because the test says so"):
        session.close()
    gpu.check_clean()


@both_drivers
def test_a_refused_capture_is_freed_where_the_wait_fails(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    session = opened(engines, "mask_head")
    inputs = inputs_of(engines, "mask_head")
    session.graphs["mask_head"].run(inputs)
    tensorrt.refusing.add("capture")
    # The first wait is for the warm-up.
    gpu.machine.failing["Stream.synchronize"] = 1
    with (
        pytest.warns(RuntimeWarning, match="mask_head runs without CUDA graphs"),
        pytest.raises(BackendError, match="because the test says so") as kept,
    ):
        session.graphs["mask_head"].run(inputs)
    with pytest.raises(BackendError, match="because the test says so"):
        session.close()
    gpu.check_clean()
    del kept
    gpu.check_clean()


def test_a_graph_that_another_thread_closes_is_one_line(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """The graph is closed after the check of a call and before its turn on the device."""
    with opened(engines, "mask_head"), opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        assert isinstance(mask_head, TensorRtGraph)
        inputs = inputs_of(engines, "mask_head")
        axes = mask_head.spec.bind(inputs)
        mask_head.close()
        with pytest.raises(BackendError, match="mask_head was closed; load the bundle again"):
            mask_head._run(inputs, axes)
        with pytest.raises(BackendError, match="mask_head was closed; load the bundle again"):
            mask_head.layer_report()
    gpu.check_clean()


def test_all_graphs_are_closed_where_one_fails(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(engines, "backbone", "mask_head", "video_decoder")
    closing = session.graphs["mask_head"]._close

    def fail() -> None:
        closing()
        raise BackendError("CUDA failed")

    monkeypatch.setattr(session.graphs["mask_head"], "_close", fail)
    with pytest.raises(BackendError, match="CUDA failed"):
        session.close()
    session.close()
    gpu.check_clean()


def sizes(bundle: Bundle, graph: str, names: Iterable[str], axes: dict[str, int]) -> int:
    """Bytes of a graph's inputs or outputs."""
    spec = bundle.graphs[graph]
    tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    return sum(
        math.prod(tensors[name].sizes(axes)) * np.dtype(tensors[name].dtype).itemsize
        for name in names
    )


def test_the_bytes_that_cross_the_bus_a_frame(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """Queries, their memory and embeddings stay on the device. Only ages of the memory are
    uploaded, only bits of the masks are downloaded. Replays copy their inputs and outputs on the
    device, and a frame's queries are copied into the memory once.
    """
    settings = StreamSettings(size=PROBE_BOX, fallback="top1", memory=4)
    texts = ["the square moving to the right", "the disc"]
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(texts, settings) as stream,
    ):
        for frame in probe_clip(6):
            _ = [result.masks for result in stream.push(frame)]
        gpu.machine.copied.update(up=0, down=0)
        gpu.machine.log.clear()
        _ = [result.masks for result in stream.push(probe_clip(1)[0])]
        moved = [entry[1] for entry in gpu.machine.log if entry[0] == "moved"]
        length = max(len(segmenter.encode_text(text).tokens) for text in texts)
        length = bucket(length)
    slots = engines.config.num_queries
    axes = {"H": 96, "W": 160, "E": 2, "L": length, "M": 4}
    text = ("text_tokens", "sentence", "text_padding")
    pointer = 8
    assert gpu.machine.copied["up"] == (
        96 * 160 * 3
        + sizes(engines, "frame_decoder", text, axes)
        + 2 * (2 * slots) * pointer  # the order of queries, and of mask embeddings
        + sizes(engines, "video_decoder", (*text, "memory_ages", "memory_empty"), axes)
        + sizes(engines, "video_decoder", ("video_queries",), axes)
        + sizes(engines, "mask_head", ("scores", "threshold"), axes)
    )
    inputs = {
        "frame_decoder": ("res2", "res3", "res4", "res5"),
        "video_decoder": ("memory",),
        "mask_head": ("mask_embeddings", "frame_mask_embeddings", "mask_features"),
    }
    replayed = [
        sizes(engines, graph, [name], axes)
        for graph in ("backbone", "frame_decoder", "video_decoder", "mask_head")
        for name in (*inputs.get(graph, ()), *(t.name for t in engines.graphs[graph].outputs))
    ]
    assert sorted(moved) == sorted([slots * engines.config.dim * 4] * 2 + replayed)
    cues = ("slot_values", "slot_logits", "slot_position", "slot_content", "slot_score")
    assert gpu.machine.copied["down"] == (
        sizes(engines, "frame_decoder", cues, axes)
        + sizes(engines, "video_decoder", ("scores",), axes)
        + packed_bytes(2)
        + 2 * 96 // 4  # whether each row of the mask logits holds numbers
    )
    gpu.check_clean()


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize(
    ("graph", "output"),
    [
        ("text_encoder", "sentence"),
        ("frame_decoder", "slot_logits"),
        ("video_decoder", "scores"),
        ("mask_head", "mask_logits"),
    ],
)
def test_nan_is_an_error(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, graph: str, output: str, place: str
) -> None:
    break_engine(engines, graph, output)
    occasion = "expression 'the disc'" if graph == "text_encoder" else "frame 0"
    settings = replace(SETTINGS["online"], masks=place)
    clip = probe_clip(2)
    with load(engines.path, backend="tensorrt") as segmenter:

        def run() -> None:
            with segmenter.stream(["the disc"], settings) as stream:
                for frame in clip:
                    stream.push(frame)

        with pytest.raises(BackendError, match=rf"^{occasion}: graph {graph} gave {output} that"):
            run()
    gpu.check_clean()


def test_masks_of_nan_cannot_be_read(gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle) -> None:
    """This includes the last frame, which no later step of the stream checks."""
    break_engine(engines, "mask_head", "mask_logits")
    with load(engines.path, backend="tensorrt") as segmenter:
        stream = segmenter.stream(["the disc"], SETTINGS["online"])
        (result,) = stream.push(probe_clip(1)[0])
        for _ in range(2):
            with pytest.raises(BackendError, match=r"^frame 0: graph mask_head gave mask_logits"):
                _ = result.masks
        with pytest.raises(BackendError, match=r"^frame 0: graph mask_head gave mask_logits"):
            stream.close()
        del result, stream
    gpu.check_clean()


@both_drivers
@pytest.mark.parametrize("name", ["online", "lookahead", "offline", "spilled"])
def test_expressions_may_come_and_go_on_the_device(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, name: str
) -> None:
    """Memories of different lengths and rows that are left out give ONNX Runtime's masks on the
    host.
    """

    def run(segmenter: Segmenter) -> list[tuple[tuple[int, ...], np.ndarray]]:
        clip = probe_clip(7)
        with segmenter.stream(["the square", "the disc"], SETTINGS[name]) as stream:
            results = [r for frame in clip[:2] for r in stream.push(frame)]
            stream.add_expression("everything")
            results += [r for frame in clip[2:5] for r in stream.push(frame)]
            stream.remove_expression(0)
            results += [r for frame in clip[5:] for r in stream.push(frame)]
            results += list(stream.flush())
        return [(result.expressions, result.masks) for result in results]

    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = run(segmenter)
    with load(engines.path, backend="tensorrt") as segmenter:
        found = run(segmenter)
    assert len(found) == len(truth) == 7
    for (numbers, some), (expected_numbers, expected_masks) in zip(found, truth, strict=True):
        assert numbers == expected_numbers
        assert (some == expected_masks).all()
    gpu.check_clean()


def without_nvrtc() -> None:
    raise BackendError("NVRTC cannot be loaded (the test says so)")


def test_without_kernels_the_host_makes_the_masks(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVRTC is missing; the device warns once, not every graph."""
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS["online"])
    monkeypatch.setattr(nvrtc, "load_nvrtc", without_nvrtc)
    with pytest.warns(
        RuntimeWarning, match=r"the host does the work.*NVRTC cannot be loaded"
    ) as said:
        segmenter = load(engines.path, backend="tensorrt")
    assert len(said) == 1
    with segmenter:
        found = masks(segmenter, SETTINGS["online"])
    assert all((a == b).all() for a, b in zip(found, truth, strict=True))
    assert moments(gpu, "launched") == []
    gpu.check_clean()


@both_drivers
def test_device_memory_is_flat_over_a_stream(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    settings = StreamSettings(size=(32, 64), fallback="top1", memory=4)
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(["the disc"], settings) as stream,
    ):
        taken = []
        for _ in range(10):
            for frame in probe_clip(6):
                stream.push(frame)
            taken.append((sum(map(len, gpu.machine.allocations.values())), len(gpu.machine.pinned)))
        assert taken[3:] == [taken[3]] * 7
    gpu.check_clean()


@both_drivers
def test_threads_share_a_segmenter(gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle) -> None:
    host_library()  # skips here: a skip in another thread would be lost
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = masks(segmenter, SETTINGS["online"])
    found: list[list[np.ndarray]] = []
    with load(engines.path, backend="tensorrt") as segmenter:

        def work() -> None:
            found.append(masks(segmenter, SETTINGS["online"]))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    for one in found:
        assert all((a == b).all() for a, b in zip(one, truth, strict=True))
    gpu.check_clean()


def test_sizes_outside_the_profiles_are_one_line_with_the_command(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    with opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        with pytest.raises(EngineError, match=r"E=1:2:4.*E=9.*build-engine .* --profile .*E=1:2:9"):
            mask_head.run(inputs_of(engines, "mask_head", E=9))
        inputs = inputs_of(engines, "mask_head")
        wrong = {**inputs, "scores": inputs["scores"].astype(np.float64)}
        with pytest.raises(InputError, match="input scores must be float32"):
            mask_head.run(wrong)
        assert enqueued(gpu) == []
    gpu.check_clean()


def test_changed_plans_are_not_deserialised(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    plan_file(engines.path, "tensorrt", "mask_head").write_bytes(b"something else")
    with pytest.raises(EngineError, match="sha256 differs"):
        opened(engines, "mask_head")
    sidecar_file(plan_file(engines.path, "tensorrt", "backbone")).unlink()
    with pytest.raises(EngineError, match=r"no sidecar.*rvos-deploy build-engine"):
        load(engines.path, backend="tensorrt")
    assert tensorrt.deserialised == []
    gpu.check_clean()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("deserialize", "cannot deserialise the plan"),
        ("types", "does not fit the graph's contract.*build-engine"),
        ("context", "GPU memory is short"),
    ],
)
def test_a_refused_engine_leaves_nothing(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, what: str, message: str
) -> None:
    tensorrt.refusing.add(what)
    with pytest.raises(BackendError, match=message):
        opened(engines, "mask_head")
    gpu.check_clean()
    tensorrt.refusing.clear()
    with opened(engines, "mask_head") as session:
        session.graphs["mask_head"].run(inputs_of(engines, "mask_head"))
    gpu.check_clean()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("profile", "refuses profile 0 in mask_head at"),
        ("shape", r"refuses scores of shape \[2, \d+\]"),
        ("output shape", r"would give mask_logits of shape \[7\]"),
        ("enqueue", "TensorRT failed in mask_head"),
    ],
)
def test_a_refused_run_is_an_error_and_the_next_one_works(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, what: str, message: str
) -> None:
    inputs = inputs_of(engines, "mask_head")
    truth = expected(engines, "mask_head", inputs)["mask_logits"]
    with opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        for _ in range(3):
            tensorrt.refusing.add(what)
            with pytest.raises(BackendError, match=message):
                mask_head.run(inputs)
            tensorrt.refusing.clear()
        found = mask_head.run(inputs)
        np.testing.assert_array_equal(to_host(session, found["mask_logits"]), truth)
        del found
    gpu.check_clean()


@pytest.mark.parametrize(
    ("runs", "what"),
    [
        (0, "profile"),
        *((runs, what) for runs in (0, 1) for what in ("shape", "output shape", "enqueue")),
        *((runs, "mem_alloc") for runs in (0, 1)),
    ],
)
def test_a_kept_error_keeps_no_object_of_tensorrt(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, runs: int, what: str
) -> None:
    """The traceback outlives the segmenter and the CUDA context of the engines."""

    def fail() -> None:
        with opened(engines, "mask_head") as session:
            for _ in range(runs):
                session.graphs["mask_head"].run(inputs_of(engines, "mask_head"))
            tensorrt.refusing.add(what)
            gpu.machine.failing.update(dict.fromkeys([what], 0))
            session.graphs["mask_head"].run(inputs_of(engines, "mask_head", E=1 if runs else 2))

    message = r"TensorRT refuses|would give|TensorRT failed|CUDA failed"
    with pytest.raises(BackendError, match=message) as kept:
        fail()
    gpu.check_clean()
    del kept
    # What it kept would be freed only now, without a context.
    gpu.check_clean()


def test_a_refused_capture_says_why_and_runs_go_on(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    tensorrt.refusing.add("capture")
    inputs = inputs_of(engines, "mask_head")
    truth = expected(engines, "mask_head", inputs)["mask_logits"]
    with opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        mask_head.run(inputs)
        with pytest.warns(RuntimeWarning, match="mask_head runs without CUDA graphs.*refused"):
            found = mask_head.run(inputs)
        np.testing.assert_array_equal(to_host(session, found["mask_logits"]), truth)
        del found
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(
                to_host(session, mask_head.run(inputs)["mask_logits"]), truth
            )
        assert isinstance(mask_head, TensorRtGraph)
        assert mask_head.disabled_reason == "TensorRT refused to be captured"
    assert replays(gpu) == 0
    gpu.check_clean()


def test_runs_without_cuda_graphs(gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle) -> None:
    with opened(engines, "mask_head", cuda_graphs=False) as session:
        mask_head = session.graphs["mask_head"]
        for _ in range(4):
            mask_head.run(inputs_of(engines, "mask_head"))
    assert enqueued(gpu) == ["mask_head"] * 4
    assert replays(gpu) == 0
    gpu.check_clean()


def test_captured_runs_are_few_and_share_one_workspace(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    with opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        for width in range(32, 257, 32):
            for height in (32, 64):
                inputs = inputs_of(engines, "mask_head", H=height, W=width)
                truth = expected(engines, "mask_head", inputs)["mask_logits"]
                for _ in range(3):
                    found = mask_head.run(inputs)["mask_logits"]
                    np.testing.assert_array_equal(to_host(session, found), truth)
                    del found
        assert len(gpu.machine.graphs) == 8
        assert replays(gpu) == 16
    gpu.check_clean()


def test_all_contexts_of_a_session_share_one_workspace(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """The graphs run one after the other, so the largest workspace serves them all."""
    tensorrt.workspaces = {"backbone": 3 << 20, "frame_decoder": 7 << 20, "mask_head": 5 << 20}
    with load(engines.path, backend="tensorrt") as segmenter:
        allocated = [entry[1] for entry in gpu.machine.log if entry[0] == "allocated"]
        assert allocated == [8 << 20]
        masks(segmenter, SETTINGS["online"])
        assert len(gpu.machine.graphs) == 4
        assert len(tensorrt.workspace_addresses) == 1
    gpu.check_clean()


def test_a_tensor_of_another_gpu_is_refused(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    gpu.machine.gpus = 2
    inputs: dict[str, Tensor] = dict(inputs_of(engines, "mask_head"))
    other = acquire_device(gpu.libraries, 1)
    inputs["scores"] = to_device(other, np.asarray(inputs["scores"]))
    with (
        opened(engines, "mask_head") as session,
        pytest.raises(InputError, match="not on GPU 0, where the graphs run; move it there first"),
    ):
        session.graphs["mask_head"].run(inputs)
    inputs.clear()
    other.release()
    gpu.check_clean()


def test_a_result_outlives_its_captured_run_but_not_the_segmenter(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    inputs = inputs_of(engines, "mask_head")
    with opened(engines, "mask_head") as session:
        mask_head = session.graphs["mask_head"]
        for _ in range(3):
            found = mask_head.run(inputs)["mask_logits"]
            kept = np.asarray(found)
        np.testing.assert_array_equal(kept, expected(engines, "mask_head", inputs)["mask_logits"])
    with pytest.raises(BackendError, match="freed with its segmenter"):
        _ = found.address
    with pytest.raises(BackendError, match=r"load the bundle again|freed with its segmenter"):
        np.asarray(found)
    with pytest.raises(BackendError, match="the graph mask_head was closed; load the bundle again"):
        mask_head.run(inputs)
    del found
    gpu.check_clean()


def test_missing_packages_are_one_line(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "pycuda.driver", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        BackendError,
        match=r"tensorrt, cuda-bindings are not installed; pip install 'rvos-deploy\[tensorrt\]'$",
    ):
        make_backend("tensorrt")


def test_only_missing_packages_are_named(
    gpu: Gpu, tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"tensorrt: cuda-bindings is not installed; pip inst"):
        make_backend("tensorrt")
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.bindings)
    gpu.machine.gpus = 0
    with pytest.raises(BackendError, match=r"no NVIDIA GPU 0.*--backend onnxruntime"):
        make_backend("tensorrt")
    gpu.machine.gpus = 1
    tensorrt.__version__ = "10.2.0"  # type: ignore[misc]
    with pytest.raises(
        BackendError, match=r"tensorrt 10\.2\.0 is installed, 10\.3 or newer is needed"
    ):
        make_backend("tensorrt")
    with pytest.raises(BackendError, match="tensorrt has no device 'cpu'; known: cuda"):
        make_backend("tensorrt", "cpu")
    gc.collect()
    gpu.check_clean()


def test_pycuda_drives_where_it_is_installed(
    gpu: Gpu, tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_backend("tensorrt").describe()["cuda"] == "pycuda"
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert make_backend("tensorrt").describe()["cuda"] == "cuda-bindings"
    gpu.check_clean()


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_half_installed_libraries_are_one_line(
    gpu: Gpu,
    tensorrt: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: type[Exception],
) -> None:
    """A package whose own library is missing raises OSError as often as ImportError."""
    for package in ("tensorrt", "pycuda"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    reason = "libgone.so.1: cannot open shared object file"
    (tmp_path / "pycuda/driver.py").write_text(f"raise {kind.__name__}({reason!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    # The end of the test removes the broken package, too, which its import adds.
    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    del sys.modules["pycuda"]
    with pytest.warns(RuntimeWarning, match=rf"^cuda-bindings is used: pycuda is .*\({reason}\)"):
        backend = make_backend("tensorrt")
    assert backend.describe()["cuda"] == "cuda-bindings"
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt/__init__.py").write_text(f"raise {kind.__name__}({reason!r})")
    with pytest.raises(BackendError, match=rf"^tensorrt is installed but .*\({reason}\)") as told:
        make_backend("tensorrt")
    assert "pip install --force-reinstall 'tensorrt'" in str(told.value)
    assert "\n" not in str(told.value)
    gpu.check_clean()


def narrow(bundle: Bundle, **sizes: tuple[int, int, int]) -> None:
    """Engines as if built with these profiles."""
    for graph in bundle.graphs:
        file = sidecar_file(plan_file(bundle.path, "tensorrt", graph))
        values = json.loads(file.read_text())
        for profile in values["profiles"]:
            profile.update({axis: size for axis, size in sizes.items() if axis in profile})
        file.write_text(json.dumps(values))


def test_verify_skips_cases_outside_the_profiles_and_says_so(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """``build-engine`` reaches up to the bundle's own size, and the tall case lies beyond it."""
    narrow(engines, H=(32, 128, 128), W=(32, 224, 224))
    left_out: list[str] = []
    results = verify(engines, TensorRtBackend(), on_unsupported=left_out.append)
    assert all(result.passed for result in results)
    assert left_out == [
        "backbone H160 W64",
        "frame_decoder H160 W64 E2 L77",
        "mask_head H160 W64 E2",
    ]
    checked = {" ".join(result.name.split()[:-1]) for result in results}
    assert "backbone H64 W96" in checked
    assert not checked & set(left_out)
    gpu.check_clean()


def test_verify_without_a_case_that_fits_is_an_error(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    narrow(engines, W=(256, 256, 256))
    with pytest.raises(EngineError, match=r"supports H=.*W=256:256:256.*build-engine .*--profile"):
        verify(engines, TensorRtBackend())
    gpu.check_clean()
