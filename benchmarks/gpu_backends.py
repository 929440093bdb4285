"""One back end on the GPU: does it give the right masks, and how fast; the same for all of them.

NOT RUN on a GPU. What was run is the same code with ONNX Runtime on the CPU in the contender's
place (see ``tests/benchmarks/test_gpu_benchmark.py``).
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.benchmarks.gpu_plan import CLIP_SIZE, Request, axes_of, texts_of
from rvos_deploy.benchmarks.timing import push_through, summarise
from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.demo import run_demo
from rvos_deploy.environment import resident_memory_bytes
from rvos_deploy.errors import RvosError
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.parity.verification import MaskCheck, verify
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.segment_video import segment_video
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import DEFAULT_MEMORY, StreamSettings
from rvos_deploy.video import Frame, read_video

CLIP_FRAMES = 64
"""Rendered once, pushed round and round."""
GRAPH_WARM_UP, GRAPH_RUNS = 20, 100
COMPARED_EVERY = 10
"""Every so many frames the masks are kept, to compare contenders."""

_ON_DEVICE = frozenset(("res2", "res3", "res4", "res5", "mask_features"))
"""What a stream leaves where the graph before put it; all else comes from the host."""

GpuBytes = Callable[[], int]
Synchronise = Callable[[], None]


@dataclass(frozen=True)
class Bench:
    """What contenders are measured with.

    Args:
        request: what is to be measured.
        video: the rendered clip.
        frames: of the clip.
        folder: for files that a run writes.
        warm_up: frames before a stream is measured; by then its memory is full.
        graph_runs: of every graph, after ``graph_warm_up``.
        synchronise: waits for the GPU.
        gpu_bytes: in use on the GPU, by all processes.
    """

    request: Request
    video: Path
    frames: Sequence[Frame]
    folder: Path
    warm_up: int
    graph_warm_up: int
    graph_runs: int
    synchronise: Synchronise
    gpu_bytes: GpuBytes


def cuda_bench(request: Request, folder: Path) -> Bench:
    """The bench of the first GPU, its clip rendered. NOT RUN."""
    from rvos_deploy.benchmarks.gpu_rates import require_torch_cuda

    torch = require_torch_cuda()

    def used() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    video = folder / "clip.mp4"
    sample_video(video, seed=0, size=CLIP_SIZE, frames=CLIP_FRAMES, emoji=False)
    return Bench(
        request=request,
        video=video,
        frames=list(read_video(video)),
        folder=folder,
        # The stream's window, and a few for the kernels that are chosen at a new size.
        warm_up=DEFAULT_MEMORY + 8,
        graph_warm_up=GRAPH_WARM_UP,
        graph_runs=GRAPH_RUNS,
        synchronise=torch.cuda.synchronize,
        gpu_bytes=used,
    )


@dataclass(frozen=True)
class Measured:
    """A contender's figures, ready for JSON, and its masks of some frames, packed by eight."""

    figures: dict[str, Any]
    masks: tuple[NDArray[np.uint8], ...]


def measure_backend(bench: Bench, name: str, make: Callable[[], Segmenter]) -> Measured:
    """Parity, J&F, stream, memory, graphs and the whole job of one back end.

    Args:
        bench: see there.
        name: of the contender.
        make: loads it.

    Raises:
        BackendError: it is not installed, or cannot run.
    """
    before = bench.gpu_bytes()
    started = time.perf_counter()
    with make() as segmenter:
        loading = time.perf_counter() - started
        stream, masks = _measure_stream(bench, segmenter)
        figures = {
            "backend": segmenter.backend.describe(),
            "load_seconds": loading,
            "stream": stream,
            "memory": {
                "gpu_bytes": bench.gpu_bytes() - before,
                "resident_bytes": resident_memory_bytes(),
            },
            "graphs": _part(lambda: _measure_graphs(bench, segmenter)),
            "whole_job": _part(lambda: _measure_job(bench, segmenter, name)),
            "parity": _part(lambda: _check_parity(segmenter)),
            "demo": _part(lambda: _score_demo(bench, segmenter, name)),
        }
    return Measured(figures, masks)


def _part(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part of a contender, or the reason why it was not run; the others go on."""
    try:
        return work()
    except RvosError as error:
        return {"reason": str(error)}


def _measure_stream(
    bench: Bench, segmenter: Segmenter
) -> tuple[dict[str, Any], tuple[NDArray[np.uint8], ...]]:
    """Seconds from a frame on the host to its masks on the host: each push waits for them.

    Stages are seen from the host: one that only queues work looks short, and the stage that waits
    for the result looks long.
    """
    seconds: list[float] = []
    stages: dict[str, list[float]] = defaultdict(list)
    kept: list[NDArray[np.uint8]] = []
    count = bench.warm_up + bench.request.frames

    def note(stage: str, took: float) -> None:
        stages[stage].append(took)

    with segmenter.stream(texts_of(bench.request), StreamSettings(), on_stage=note) as stream:
        for number in range(count):
            if number == bench.warm_up:
                bench.synchronise()
                stages.clear()
            image = bench.frames[number % len(bench.frames)].image
            started = time.perf_counter()
            results = push_through(stream, image)
            took = time.perf_counter() - started
            if number >= bench.warm_up:
                seconds.append(took)
                if number % COMPARED_EVERY == 0:
                    kept += [np.packbits(result.masks, axis=-1) for result in results]
    figures = {
        "warm_up_frames": bench.warm_up,
        **summarise(seconds),
        "stages": {stage: summarise(times) for stage, times in stages.items()},
    }
    return figures, tuple(kept)


def _measure_graphs(bench: Bench, segmenter: Segmenter) -> dict[str, Any]:
    """Every graph alone: its call, and the wait until the GPU is done.

    Inputs come from where a stream takes them: features from the graph before, the rest from the
    host, its upload included.
    """
    axes = axes_of(bench.request)
    values: dict[str, Tensor] = {}
    results: dict[str, Any] = {}
    with segmenter.backend.open(segmenter.bundle) as session:
        for seed, (name, spec) in enumerate(segmenter.bundle.graphs.items()):
            own = {**axes, "E": 1} if name == "text_encoder" else axes
            inputs: dict[str, Tensor] = {
                **probe_inputs(spec, {axis.name: own[axis.name] for axis in spec.axes}, seed),
                **{t.name: values[t.name] for t in spec.inputs if t.name in values},
            }
            results[name], outputs = _time_graph(bench, session.graphs[name], inputs)
            values.update({key: value for key, value in outputs.items() if key in _ON_DEVICE})
    return results


def _time_graph(
    bench: Bench, graph: Graph, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for _ in range(bench.graph_warm_up):
        graph.run(inputs)
    bench.synchronise()
    seconds: list[float] = []
    outputs: dict[str, Tensor] = {}
    for _ in range(bench.graph_runs):
        started = time.perf_counter()
        outputs = graph.run(inputs)
        bench.synchronise()
        seconds.append(time.perf_counter() - started)
    return summarise(seconds), outputs


def _measure_job(bench: Bench, segmenter: Segmenter, name: str) -> dict[str, Any]:
    """Frames a second as ``run`` does it: decoding, inference and writing side by side."""
    out = bench.folder / f"job-{name.replace(' ', '-')}"
    report = segment_video(segmenter, bench.video, texts_of(bench.request), out, StreamSettings())
    return {
        "frames": report.frames,
        "seconds": report.seconds,
        "frames_per_second": report.frames_per_second,
    }


def _check_parity(segmenter: Segmenter) -> dict[str, Any]:
    """Against what PyTorch gave on the CPU when the bundle was exported, as ``verify`` does."""
    results = verify(segmenter.bundle, segmenter.backend)
    masks = next(result for result in results if isinstance(result, MaskCheck))
    failed = [result.name for result in results if not result.passed]
    return {
        "passed": not failed,
        "checks": len(results),
        "failed": failed,
        "j": masks.j,
        "f": masks.f,
        "j_and_f": masks.j_and_f,
    }


def _score_demo(bench: Bench, segmenter: Segmenter, name: str) -> dict[str, Any]:
    """J&F against the truth of a Moving Sprites video; of random weights it says nothing."""
    out = bench.folder / f"demo-{name.replace(' ', '-')}"
    scores = run_demo(segmenter, out, command="benchmarks.gpu").scores
    return {
        "j": float(np.mean([score.j for score in scores])),
        "f": float(np.mean([score.f for score in scores])),
        "j_and_f": float(np.mean([score.j_and_f for score in scores])),
        "expressions": len(scores),
    }


def masks_j_and_f(ours: Sequence[NDArray[np.uint8]], theirs: Sequence[NDArray[np.uint8]]) -> float:
    """J&F of the kept masks of one contender against another's."""
    return float(
        np.mean(
            [
                frame_scores(
                    np.unpackbits(mine, axis=-1).astype(np.bool_),
                    np.unpackbits(other, axis=-1).astype(np.bool_),
                ).j_and_f
                for mine, other in zip(ours, theirs, strict=True)
            ]
        )
    )
