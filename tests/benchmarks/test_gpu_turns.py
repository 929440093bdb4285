"""Test on the CPU what runs on a GPU: back ends are opened, checked, and measured in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rvos_deploy.benchmarks import gpu_turns
from rvos_deploy.benchmarks.gpu_backends import Setup, open_backend
from rvos_deploy.benchmarks.gpu_clocks import Reading
from rvos_deploy.benchmarks.gpu_plan import Request
from rvos_deploy.benchmarks.gpu_torch import DeviceTorchBackend
from rvos_deploy.benchmarks.gpu_turns import (
    masks_j_and_f,
    time_graphs,
    time_jobs,
    time_streams,
)
from rvos_deploy.benchmarks.gpu_video import DECODE, ENCODE, MASKS_DOWN, RESIZE
from rvos_deploy.benchmarks.rounds import spread_of
from rvos_deploy.benchmarks.torch_ops import TorchOps, TorchTensor
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.video import read_video

GRAPHS = ("backbone", "text_encoder", "frame_decoder", "video_decoder", "mask_head")
ROUNDS = 3


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    video = tmp_path_factory.mktemp("clip") / "clip.mp4"
    sample_video(video, seed=0, size=(90, 158), frames=8, emoji=False)
    return video


@pytest.fixture
def setup(tiny_bundle: Path, tmp_path: Path, clip: Path) -> Setup:
    request = Request(open_bundle(tiny_bundle), tmp_path, 2, 12, None, ROUNDS)
    waits: list[int] = []
    return Setup(
        request=request,
        video=clip,
        frames=list(read_video(clip)),
        folder=tmp_path,
        warm_up=2,
        graph_warm_up=1,
        graph_runs=2,
        rounds=ROUNDS,
        synchronise=lambda: waits.append(1),
        gpu_bytes=lambda: len(waits),
        read=lambda: Reading(1500, 80.0, 50, frozenset()),
    )


@pytest.fixture
def opened(tiny_bundle: Path) -> Iterator[dict[str, Segmenter]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(load(tiny_bundle)) for name in ("first", "second")}


def failing(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, runs: int) -> list[int]:
    """Let a graph fail after so many runs."""
    graph = segmenter._session.graphs["backbone"]
    run, left = graph.run, [runs]

    def fail(inputs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise BackendError("CUDA failed on GPU 0")
        return run(inputs)

    monkeypatch.setattr(graph, "run", fail)
    return left


def test_streams_run_in_turn_with_their_spread_and_clocks(
    setup: Setup, opened: dict[str, Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    turn = gpu_turns._stream_turn
    sides: list[Any] = []

    def recorded(setup: Setup, side: Any, frames: int) -> Any:
        if side not in sides:
            sides.append(side)
        order.append("ab"[sides.index(side)])
        return turn(setup, side, frames)

    monkeypatch.setattr(gpu_turns, "_stream_turn", recorded)
    monkeypatch.setattr(gpu_turns, "COMPARED_EVERY", 5)
    found, masks = time_streams(setup, opened)
    assert "".join(order) == "ab" + "ba" + "ab"
    assert (found["rounds"], found["missing"]) == (ROUNDS, {})
    for figures in found["contenders"].values():
        assert figures["count"] == 12
        rounds = figures["rounds"]["rounds"]
        assert len(rounds) == ROUNDS
        assert figures["rounds"] == spread_of(rounds)
        # Warm-ups of the turns are in the stages, and those of the stream are not.
        assert figures["stages"]["backbone"]["count"] == ROUNDS * (4 + gpu_turns.TURN_WARM_UP)
        assert [clocks["sm_mhz"]["p50"] for clocks in figures["clocks"]] == [1500] * ROUNDS
    # Of frames 2 to 25: 5, 10, 15, 20, 25; both expressions, rows packed by eight.
    assert [mask.shape for mask in masks["first"]] == [(2, 90, 20)] * 5
    assert masks_j_and_f(masks["first"], masks["second"]) == 1.0
    json.dumps(found, allow_nan=False)


def test_a_back_end_that_fails_does_not_stop_the_others(
    setup: Setup, opened: dict[str, Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second turn of this back end fails: 2 frames, then 4 + 4 in each turn.
    failing(opened["first"], monkeypatch, 12)
    found, masks = time_streams(setup, opened)
    assert list(found["contenders"]) == list(masks) == ["second"]
    assert found["contenders"]["second"]["count"] == 12
    assert found["missing"] == {"first": "CUDA failed on GPU 0"}
    # A whole job of it cannot even begin.
    found = time_jobs(setup, opened)
    assert list(found["contenders"]) == ["second"]
    assert "CUDA failed on GPU 0" in found["missing"]["first"]


def test_every_graph_is_measured_alone(setup: Setup, opened: dict[str, Segmenter]) -> None:
    found = time_graphs(setup, opened)
    for figures in found["contenders"].values():
        assert list(figures) == list(GRAPHS)
        for row in figures.values():
            assert row["count"] == 2 * ROUNDS
            assert len(row["rounds"]["rounds"]) == ROUNDS
    json.dumps(found, allow_nan=False)


def test_a_video_is_decoded_segmented_and_encoded(
    setup: Setup, opened: dict[str, Segmenter]
) -> None:
    found = time_jobs(setup, {"first": opened["first"]})
    assert (found["video"], found["rounds"]) == ("clip.mp4", ROUNDS)
    job = found["contenders"]["first"]
    assert job["frames"] == 8
    assert len(job["frames_per_second"]["rounds"]) == len(job["clocks"]) == ROUNDS
    names = list(job["stages"])
    assert names[0] == DECODE
    assert names[-2:] == [MASKS_DOWN, ENCODE]
    assert {RESIZE, "backbone", "video_decoder", "post-processing"} <= set(names)
    assert all(job["stages"][name]["p50"] > 0 for name in (DECODE, RESIZE, ENCODE))
    written = {file.name for file in (setup.folder / "job-first").iterdir()}
    assert {"overlay.mp4", "result.json"} <= written
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_a_back_end_is_opened_and_checked(setup: Setup, tiny_bundle: Path) -> None:
    opened = open_backend(setup, "a name", lambda: load(tiny_bundle))
    with opened.segmenter:
        found = opened.figures
        assert found["parity"]["passed"]
        assert found["parity"]["j_and_f"] == 1.0
        assert 0 <= found["demo"]["j_and_f"] <= 1
        assert found["load_seconds"] > 0
        json.dumps(found, allow_nan=False)


def test_a_back_end_that_fails_while_it_is_opened_is_closed(
    setup: Setup, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = load(tiny_bundle)
    failing(segmenter, monkeypatch, 0)
    with pytest.raises(BackendError, match="CUDA failed on GPU 0"):
        open_backend(setup, "a name", lambda: segmenter)
    with pytest.raises(InputError, match="this segmenter is closed"):
        segmenter.encode_text("the disc")


def test_pytorch_on_a_device_gives_the_numbers_of_the_bundle(tiny_bundle: Path) -> None:
    """The way of a GPU, on the CPU: tensors stay PyTorch's between the graphs."""
    bundle = open_bundle(tiny_bundle)
    backend = DeviceTorchBackend(bundle, None, compiled=False, device="cpu")
    frame = np.random.default_rng(0).integers(0, 256, (90, 158, 3), dtype=np.uint8)
    masks, scores = [], []
    for segmenter in (Segmenter(bundle, backend), load(tiny_bundle)):
        with segmenter, segmenter.stream(["the red star", "the disc"]) as stream:
            results = [stream.push(frame)[0] for _ in range(3)]
            masks.append(np.stack([result.masks for result in results]))
            scores.append(np.stack([result.scores for result in results]))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert (masks[0] == masks[1]).mean() > 0.999
    assert backend.describe()["name"] == "pytorch eager"


@pytest.mark.parametrize("name", GRAPHS)
def test_no_graph_of_pytorch_reads_back_from_its_device(tiny_bundle: Path, name: str) -> None:
    """On the device ``meta`` there is nothing to read, so every host round trip would fail."""
    import torch

    bundle = open_bundle(tiny_bundle)
    backend = DeviceTorchBackend(bundle, None, compiled=False, device="meta")
    sizes = {"H": 64, "W": 96, "E": 2, "L": 6, "M": 3}
    spec = bundle.graphs[name]
    inputs = probe_inputs(spec, {axis.name: sizes[axis.name] for axis in spec.axes}, 0)
    with backend.open(bundle, [name]) as session:
        graph: Any = session.graphs[name]
        outputs = graph._run(inputs, {})
    for tensor in outputs.values():
        assert tensor.tensor.device == torch.device("meta")


def test_torchs_operations_are_those_of_the_host() -> None:
    ours, host = TorchOps("cpu"), HostOps()
    random = np.random.default_rng(0)
    rows = random.standard_normal((3, 4, 2)).astype(np.float32)
    order, each = np.array([2, 0]), np.array([[3, 1], [0, 0], [2, 3]])
    for index in (order, each):
        assert (np.asarray(ours.gather(rows, index)) == np.asarray(host.gather(rows, index))).all()
    unchanged = TorchTensor(ours.tensor(rows))
    assert ours.gather(unchanged, np.arange(3)) is unchanged
    kept = np.array([1, -1, 0])
    for columns in (2, 6):
        found = ours.resized(rows, kept, columns)
        assert (np.asarray(found) == np.asarray(host.resized(rows, kept, columns))).all()
        assert isinstance(found, TorchTensor)
    target, wanted = ours.zeros((3, 4, 2), np.float32), host.zeros((3, 4, 2), np.float32)
    for ops, tensor in ((ours, target), (host, wanted)):
        ops.write(tensor, np.array([3, 0, 1]), rows[:, 0])
    assert (np.asarray(target) == np.asarray(wanted)).all()
    joined = ours.concatenate([rows, target])
    assert (np.asarray(joined) == np.concatenate([rows, np.asarray(wanted)])).all()
    assert (joined.shape, joined.dtype, joined.nbytes) == ((6, 4, 2), np.float32, 192)
