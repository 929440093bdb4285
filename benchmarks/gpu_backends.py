"""Open one back end on the GPU, and check it: parity of its masks, J&F, memory; the same code for
all back ends. ``gpu_turns.py`` measures their speed.

NOT RUN on a GPU. The tests run the same code on ONNX Runtime on the CPU (see
``tests/benchmarks/test_gpu_turns.py``).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvos_deploy.benchmarks.gpu_clocks import Read
from rvos_deploy.benchmarks.gpu_plan import CLIP_SIZE, Request, texts_of
from rvos_deploy.benchmarks.timing import push_through
from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.demo import run_demo
from rvos_deploy.environment import resident_memory_bytes
from rvos_deploy.errors import RvosError
from rvos_deploy.parity.verification import MaskCheck, verify
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import DEFAULT_MEMORY
from rvos_deploy.video import Frame, read_video

CLIP_FRAMES = 64
"""Frames of the rendered clip, which is pushed again and again."""
GRAPH_WARM_UP, GRAPH_RUNS = 20, 50
GpuBytes = Callable[[], int]
Synchronise = Callable[[], None]


@dataclass(frozen=True)
class Setup:
    """Hold the inputs that all back ends share.

    Args:
        request: what to measure.
        video: the file of whole jobs; the rendered clip by default.
        frames: of the rendered clip, for streams.
        folder: for files of the runs.
        warm_up: frames before a stream is measured; the memory is full by then.
        graph_warm_up: runs of a graph before it is measured.
        graph_runs: measured runs of every graph, in each round.
        rounds: in which all back ends run in turn, at least three.
        read: reads the GPU's clock; None where NVML is missing.
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
    rounds: int
    synchronise: Synchronise
    gpu_bytes: GpuBytes
    read: Read | None = None


def cuda_setup(request: Request, folder: Path, read: Read | None) -> Setup:
    """Return the setup of the first GPU, and render its clip. NOT RUN.

    Args:
        request: what to measure.
        folder: for files of the runs.
        read: reads the GPU's clock.
    """
    from rvos_deploy.benchmarks.gpu_rates import require_torch_cuda

    torch = require_torch_cuda()

    def used() -> int:
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    clip = folder / "clip.mp4"
    sample_video(clip, seed=0, size=CLIP_SIZE, frames=CLIP_FRAMES, emoji=False)
    return Setup(
        request=request,
        video=request.video or clip,
        frames=list(read_video(clip)),
        folder=folder,
        # The window fills, and a few more frames let libraries choose kernels at the new sizes.
        warm_up=DEFAULT_MEMORY + 8,
        graph_warm_up=GRAPH_WARM_UP,
        graph_runs=GRAPH_RUNS,
        rounds=request.rounds,
        synchronise=torch.cuda.synchronize,
        gpu_bytes=used,
        read=read,
    )


@dataclass(frozen=True)
class OpenedBackend:
    """A back end that stays open until all are measured, and its figures, ready for JSON."""

    segmenter: Segmenter
    figures: dict[str, Any]


def open_backend(setup: Setup, name: str, make: Callable[[], Segmenter]) -> OpenedBackend:
    """Load a back end, and check parity, J&F and memory.

    Args:
        setup: what to measure with.
        name: of the back end.
        make: loads the back end.

    Returns:
        The back end; the caller closes its segmenter.

    Raises:
        BackendError: the back end is not installed, or cannot run.
    """
    before = setup.gpu_bytes()
    started = time.perf_counter()
    with ExitStack() as stack:
        segmenter = stack.enter_context(make())
        loading = time.perf_counter() - started
        with segmenter.stream(texts_of(setup.request)) as stream:
            for number in range(setup.warm_up):
                push_through(stream, setup.frames[number % len(setup.frames)].host_image())
            memory = {
                "gpu_bytes": setup.gpu_bytes() - before,
                "resident_bytes": resident_memory_bytes(),
            }
        figures = {
            "backend": segmenter.backend.describe(),
            "load_seconds": loading,
            "memory": memory,
            "parity": _guarded_part(lambda: _check_parity(segmenter)),
            "demo": _guarded_part(lambda: _score_demo(setup, segmenter, name)),
        }
        stack.pop_all()
    return OpenedBackend(segmenter, figures)


def _guarded_part(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one part of the measurement, or record why it could not run; the other parts go on."""
    try:
        return work()
    except RvosError as error:
        return {"reason": str(error)}


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
