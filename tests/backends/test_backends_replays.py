"""Test that nearly every run of a stream replays a CUDA graph, on the recording stand-ins."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from recording_cuda import Gpu

from rvos_deploy.bundle.engine_sidecar import plan_file, sidecar_file
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.graph_io.probe import probe_clip, probe_inputs
from rvos_deploy.runtime.backends.tensorrt.backend import TensorRtBackend
from rvos_deploy.runtime.backends.tensorrt.buckets import bucket, padded_size
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings

if TYPE_CHECKING:
    from recording_tensorrt import FakeTensorRt

GRAPHS = ("backbone", "frame_decoder", "video_decoder", "mask_head")
WARM_UP = 11
"""Frames before the count: the largest lookahead, and a plain and a captured run of each graph."""
COUNTED = 30


def settings(lookahead: int) -> StreamSettings:
    return StreamSettings(size=(32, 64), fallback="top1", memory=4, lookahead=lookahead)


@pytest.mark.parametrize("lookahead", [0, 1, 2, 3, 8])
def test_nearly_every_run_of_a_stream_is_a_replay(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, lookahead: int
) -> None:
    """Results are kept for as long as the stream runs, and expressions come and go."""
    kept = []
    with (
        load(engines.path, backend="tensorrt") as segmenter,
        segmenter.stream(["the square", "the disc"], settings(lookahead)) as stream,
    ):
        for number, frame in enumerate(probe_clip(WARM_UP + COUNTED)):
            if number == WARM_UP:
                gpu.machine.log.clear()
            if number == WARM_UP + 5:
                stream.add_expression("the small square that moves to the right")
            if number == WARM_UP + 20:
                stream.remove_expression(2)
            kept += stream.push(frame)
    replayed = Counter(entry[1] for entry in gpu.machine.log if entry[0] == "replayed")
    shares = {graph: replayed[graph] / COUNTED for graph in GRAPHS}
    assert min(shares.values()) >= 0.9, shares
    gpu.check_clean()


TEXTS = (
    "the square",
    "the disc",
    "the small square that moves to the right and turns",
    "everything",
    "the disc on the left",
    "a square",
    "the other disc",
)


@pytest.mark.parametrize("lookahead", [0, 3])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_padded_expressions_change_no_mask(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, lookahead: int, cuda_graphs: bool
) -> None:
    """Five expressions run as six, and seven as eight; rows of removed ones are not seen again."""
    widen(engines, 8)

    def run(segmenter: Segmenter) -> list[np.ndarray]:
        masks: list[np.ndarray] = []
        with segmenter.stream(TEXTS[:5], settings(lookahead)) as stream:
            for number, frame in enumerate(probe_clip(12)):
                if number == 4:
                    stream.add_expression(TEXTS[5])
                    stream.add_expression(TEXTS[6])
                if number == 8:
                    stream.remove_expression(0)
                    stream.remove_expression(6)
                masks += [result.masks for result in stream.push(frame)]
            return masks + [result.masks for result in stream.flush()]

    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        truth = run(segmenter)
    backend = TensorRtBackend(cuda_graphs=cuda_graphs)
    with Segmenter(engines, backend) as segmenter:
        found = run(segmenter)
    assert len(found) == len(truth) == 12
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {
        shapes["text_tokens"][0] for name, shapes in tensorrt.shapes if name == "frame_decoder"
    } == {6, 8}
    gpu.check_clean()


def test_alternating_sizes_leave_the_shapes_of_every_context_alone(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """NVIDIA/TensorRT#4849: each change of a context's shapes leaks a module of the plugin."""
    spec = engines.graphs["mask_head"]
    cases = [
        {axis.name: {"H": 32, "W": width, "E": rows}[axis.name] for axis in spec.axes}
        for width, rows in ((64, 1), (64, 2), (96, 2))
    ]
    with TensorRtBackend().open(engines, ["mask_head"]) as session:
        many = [probe_inputs(spec, case, seed) for seed, case in enumerate(cases)]
        for _ in range(2):
            for inputs in many:
                session.graphs["mask_head"].run(inputs)
        before = tensorrt.shape_changes["mask_head"]
        for _ in range(100):
            for inputs in many:
                session.graphs["mask_head"].run(inputs)
        assert tensorrt.shape_changes["mask_head"] == before
    gpu.check_clean()


def test_buckets() -> None:
    sizes = range(1, 20)
    assert [bucket(size) for size in sizes] == [
        *(1, 2, 3, 4, 6, 6, 8, 8),
        *(12, 12, 12, 12, 16, 16, 16, 16),
        *(24, 24, 24),
    ]
    assert all(size <= bucket(size) <= 1.5 * size for size in range(1, 1000))


def test_padded_sizes_stay_within_every_profile_that_supports_the_size() -> None:
    profiles = [{"E": (1, 2, 8), "M": (1, 64, 64)}, {"E": (1, 5, 5), "L": (2, 16, 77)}]
    assert [padded_size(profiles, "E", size) for size in (4, 5, 6, 7, 9)] == [4, 5, 6, 8, 9]
    assert [padded_size(profiles, "L", size) for size in (5, 65, 77, 78)] == [6, 77, 77, 78]
    assert padded_size(profiles, "M", 5) == 5


def widen(bundle: Bundle, expressions: int) -> None:
    """Give the engines profiles of so many expressions."""
    for graph in bundle.graphs:
        file = sidecar_file(plan_file(bundle.path, "tensorrt", graph))
        values = json.loads(file.read_text())
        for profile in values["profiles"]:
            if "E" in profile:
                profile["E"] = [1, 2, expressions]
        file.write_text(json.dumps(values))
