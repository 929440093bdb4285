"""Measure one back end on the GPU: parity of its masks, and speed; the same code for all back ends.

NOT RUN on a GPU. The tests run the same code on ONNX Runtime on the CPU (see
``tests/benchmarks/test_gpu_benchmark.py``).
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
from rvos_deploy.runtime.run import run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import DEFAULT_MEMORY, StreamSettings
from rvos_deploy.video import Frame, read_video

CLIP_FRAMES = 64
"""Frames of the rendered clip, which is pushed again and again."""
GRAPH_WARM_UP, GRAPH_RUNS = 20, 100
COMPARED_EVERY = 10
"""The masks of each tenth frame are kept, to compare the back ends."""

_ON_DEVICE = frozenset(("res2", "res3", "res4", "res5", "mask_features"))
"""Tensors that stay where the previous graph put them; a stream takes all others from the host."""

GpuBytes = Callable[[], int]
Synchronise = Callable[[], None]


@dataclass(frozen=True)
class Setup:
    """Hold the inputs that all back ends share.

    Args:
        request: what to measure.
        video: the rendered clip.
        frames: of the clip.
        folder: for files of the runs.
        warm_up: frames before a stream is measured; the memory is full by then.
        graph_warm_up: runs of a graph before it is measured.
        graph_runs: measured runs of every graph.
        synchronise: waits for the GPU.
        gpu_bytes: returns the GPU memory in use by all processes.
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


def cuda_setup(request: Request, folder: Path) -> Setup:
    """Return the setup of the first GPU, and render its clip. NOT RUN."""
    from rvos_deploy.benchmarks.gpu_rates import require_torch_cuda

    torch = require_torch_cuda()

    def used() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    video = folder / "clip.mp4"
    sample_video(video, seed=0, size=CLIP_SIZE, frames=CLIP_FRAMES, emoji=False)
    return Setup(
        request=request,
        video=video,
        frames=list(read_video(video)),
        folder=folder,
        # The window fills, and a few more frames let libraries choose kernels at the new sizes.
        warm_up=DEFAULT_MEMORY + 8,
        graph_warm_up=GRAPH_WARM_UP,
        graph_runs=GRAPH_RUNS,
        synchronise=torch.cuda.synchronize,
        gpu_bytes=used,
    )


@dataclass(frozen=True)
class Measured:
    """A back end's figures, ready for JSON, and its masks of some frames, packed to bits."""

    figures: dict[str, Any]
    masks: tuple[NDArray[np.uint8], ...]


def measure_backend(setup: Setup, name: str, make: Callable[[], Segmenter]) -> Measured:
    """Measure parity, J&F, the stream, memory, graphs and the whole job of one back end.

    Args:
        setup: what to measure with.
        name: of the back end.
        make: loads the back end.

    Raises:
        BackendError: the back end is not installed, or cannot run.
    """
    before = setup.gpu_bytes()
    started = time.perf_counter()
    with make() as segmenter:
        loading = time.perf_counter() - started
        stream, masks = _measure_stream(setup, segmenter)
        figures = {
            "backend": segmenter.backend.describe(),
            "load_seconds": loading,
            "stream": stream,
            "memory": {
                "gpu_bytes": setup.gpu_bytes() - before,
                "resident_bytes": resident_memory_bytes(),
            },
            "graphs": _guarded_part(lambda: _measure_graphs(setup, segmenter)),
            "whole_job": _guarded_part(lambda: _measure_job(setup, segmenter, name)),
            "parity": _guarded_part(lambda: _check_parity(segmenter)),
            "demo": _guarded_part(lambda: _score_demo(setup, segmenter, name)),
        }
    return Measured(figures, masks)


def _guarded_part(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one part of the measurement, or record why it could not run; the other parts go on."""
    try:
        return work()
    except RvosError as error:
        return {"reason": str(error)}


def _measure_stream(
    setup: Setup, segmenter: Segmenter
) -> tuple[dict[str, Any], tuple[NDArray[np.uint8], ...]]:
    """Measure seconds from a frame on the host to its masks on the host; each push waits for them.

    Stages are timed on the host. A stage that only queues work looks short, and the stage that
    waits for the result looks long.
    """
    seconds: list[float] = []
    stages: dict[str, list[float]] = defaultdict(list)
    kept: list[NDArray[np.uint8]] = []
    count = setup.warm_up + setup.request.frames

    def note(stage: str, took: float) -> None:
        stages[stage].append(took)

    with segmenter.stream(texts_of(setup.request), StreamSettings(), on_stage=note) as stream:
        for number in range(count):
            if number == setup.warm_up:
                setup.synchronise()
                stages.clear()
            image = setup.frames[number % len(setup.frames)].host_image()
            started = time.perf_counter()
            results = push_through(stream, image)
            took = time.perf_counter() - started
            if number >= setup.warm_up:
                seconds.append(took)
                if number % COMPARED_EVERY == 0:
                    kept += [np.packbits(result.masks, axis=-1) for result in results]
    figures = {
        "warm_up_frames": setup.warm_up,
        **summarise(seconds),
        "stages": {stage: summarise(times) for stage, times in stages.items()},
    }
    return figures, tuple(kept)


def _measure_graphs(setup: Setup, segmenter: Segmenter) -> dict[str, Any]:
    """Measure every graph alone, from the call until the GPU is done.

    Inputs come from where a stream takes them: features from the previous graph, the others from
    the host with their upload.
    """
    axes = axes_of(setup.request)
    values: dict[str, Tensor] = {}
    results: dict[str, Any] = {}
    with segmenter.backend.open(segmenter.bundle) as session:
        for seed, (name, spec) in enumerate(segmenter.bundle.graphs.items()):
            own = {**axes, "E": 1} if name == "text_encoder" else axes
            inputs: dict[str, Tensor] = {
                **probe_inputs(spec, {axis.name: own[axis.name] for axis in spec.axes}, seed),
                **{t.name: values[t.name] for t in spec.inputs if t.name in values},
            }
            results[name], outputs = _time_graph(setup, session.graphs[name], inputs)
            values.update({key: value for key, value in outputs.items() if key in _ON_DEVICE})
    return results


def _time_graph(
    setup: Setup, graph: Graph, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for _ in range(setup.graph_warm_up):
        graph.run(inputs)
    setup.synchronise()
    seconds: list[float] = []
    outputs: dict[str, Tensor] = {}
    for _ in range(setup.graph_runs):
        started = time.perf_counter()
        outputs = graph.run(inputs)
        setup.synchronise()
        seconds.append(time.perf_counter() - started)
    return summarise(seconds), outputs


def _measure_job(setup: Setup, segmenter: Segmenter, name: str) -> dict[str, Any]:
    """Measure frames per second of ``run``: decoding, inference and writing overlap."""
    out = setup.folder / f"job-{name.replace(' ', '-')}"
    report = run(segmenter, setup.video, texts_of(setup.request), out)
    return {
        "frames": report.frames,
        "seconds": report.seconds,
        "frames_per_second": report.frames_per_second,
    }


def _check_parity(segmenter: Segmenter) -> dict[str, Any]:
    """Compare with PyTorch's results on the CPU at export, as ``verify`` does."""
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


def _score_demo(setup: Setup, segmenter: Segmenter, name: str) -> dict[str, Any]:
    """Compute J&F against the ground truth of a Moving Sprites video; meaningless for random
    weights.
    """
    out = setup.folder / f"demo-{name.replace(' ', '-')}"
    scores = run_demo(segmenter, out, command="benchmarks.gpu").scores
    return {
        "j": float(np.mean([score.j for score in scores])),
        "f": float(np.mean([score.f for score in scores])),
        "j_and_f": float(np.mean([score.j_and_f for score in scores])),
        "expressions": len(scores),
    }


def masks_j_and_f(ours: Sequence[NDArray[np.uint8]], theirs: Sequence[NDArray[np.uint8]]) -> float:
    """Return J&F between the kept masks of two back ends, packed to bits."""
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
