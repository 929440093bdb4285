"""Measure the speed of all opened back ends in turn: streams, single graphs, whole jobs.

In each round every back end has one turn, and another one begins each time. So the clock of a GPU
that grows warm, or another user of the machine, meets all of them. The spread of the rounds tells
how much a difference means. A back end that fails drops out, and the others go on.

NOT RUN on a GPU. The tests run the same code on ONNX Runtime on the CPU.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.benchmarks.gpu_backends import Setup
from rvos_deploy.benchmarks.gpu_clocks import watching
from rvos_deploy.benchmarks.gpu_plan import axes_of, texts_of
from rvos_deploy.benchmarks.gpu_video import JobTimes, time_job
from rvos_deploy.benchmarks.rounds import in_turn, make_each, spread_of
from rvos_deploy.benchmarks.timing import push_through, summarise
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Graph, Session
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings

TURN_WARM_UP = 4
"""Frames of a turn before it is measured: the first ones find another back end's data in caches."""
COMPARED_EVERY = 10
"""The masks of each tenth frame are kept, to compare the back ends."""

_ON_DEVICE = frozenset(("res2", "res3", "res4", "res5", "mask_features"))
"""Tensors that stay where the previous graph put them; a stream takes all others from the host."""

Masks = tuple[NDArray[np.uint8], ...]
Opened = Mapping[str, Segmenter]


@dataclass
class _Side:
    """A back end's stream, and what its turns gave."""

    stream: Stream
    stages: dict[str, list[float]]
    pushed: int = 0
    masks: list[NDArray[np.uint8]] = field(default_factory=list)


@dataclass(frozen=True)
class _Turn:
    seconds: list[float]
    clocks: dict[str, Any]


def time_streams(setup: Setup, opened: Opened) -> tuple[dict[str, Any], dict[str, Masks]]:
    """Measure seconds from a frame on the host to its masks on the host; each push waits for them.

    Stages are timed on the host. A stage that only queues work looks short, and the stage that
    waits for the result looks long.

    Returns:
        The figures, ready for JSON, and the masks of some frames by back end, packed to bits.
    """
    frames = -(-setup.request.frames // setup.rounds)
    with ExitStack() as stack:
        sides, missing = make_each(
            {
                name: partial(_open_side, setup, stack, segmenter)
                for name, segmenter in opened.items()
            }
        )
        found, failed = in_turn(
            sides, setup.rounds, lambda side, _: _stream_turn(setup, side, frames)
        )
    contenders = {}
    for name, turns in found.items():
        contenders[name] = {
            "warm_up_frames": setup.warm_up,
            **summarise([second for turn in turns for second in turn.seconds]),
            "rounds": _medians([turn.seconds for turn in turns]),
            "stages": {stage: summarise(times) for stage, times in sides[name].stages.items()},
            "clocks": [turn.clocks for turn in turns],
        }
    figures = _figures(setup, contenders, missing | failed)
    return figures, {name: tuple(sides[name].masks) for name in found}


def _open_side(setup: Setup, stack: ExitStack, segmenter: Segmenter) -> _Side:
    stages: dict[str, list[float]] = defaultdict(list)

    def note(stage: str, took: float) -> None:
        stages[stage].append(took)

    stream = segmenter.stream(texts_of(setup.request), StreamSettings(), on_stage=note)
    side = _Side(stack.enter_context(stream), stages)
    for _ in range(setup.warm_up):
        _push(setup, side)
    stages.clear()
    return side


def _push(setup: Setup, side: _Side) -> float:
    image = setup.frames[side.pushed % len(setup.frames)].host_image()
    started = time.perf_counter()
    results = push_through(side.stream, image)
    took = time.perf_counter() - started
    if side.pushed >= setup.warm_up and side.pushed % COMPARED_EVERY == 0:
        side.masks += [np.packbits(result.masks, axis=-1) for result in results]
    side.pushed += 1
    return took


def _stream_turn(setup: Setup, side: _Side, frames: int) -> _Turn:
    for _ in range(TURN_WARM_UP):
        _push(setup, side)
    setup.synchronise()
    with watching(setup.read) as clocks:
        seconds = [_push(setup, side) for _ in range(frames)]
    return _Turn(seconds, clocks)


@dataclass(frozen=True)
class _Graphs:
    session: Session
    inputs: Mapping[str, Mapping[str, Tensor]]


def time_graphs(setup: Setup, opened: Opened) -> dict[str, Any]:
    """Measure every graph alone, from the call until the GPU is done.

    Inputs come from where a stream takes them: features from the previous graph, the others from
    the host with their upload.
    """
    with ExitStack() as stack:
        sides, missing = make_each(
            {
                name: partial(_open_graphs, setup, stack, segmenter)
                for name, segmenter in opened.items()
            }
        )
        found, failed = in_turn(
            sides,
            setup.rounds,
            lambda side, _: {
                name: _graph_turn(setup, side.session.graphs[name], inputs)
                for name, inputs in side.inputs.items()
            },
        )
    contenders = {
        name: {
            graph: {
                **summarise([second for turn in turns for second in turn[graph]]),
                "rounds": _medians([turn[graph] for turn in turns]),
            }
            for graph in turns[0]
        }
        for name, turns in found.items()
    }
    return _figures(setup, contenders, missing | failed)


def _open_graphs(setup: Setup, stack: ExitStack, segmenter: Segmenter) -> _Graphs:
    axes = axes_of(setup.request)
    values: dict[str, Tensor] = {}
    given: dict[str, dict[str, Tensor]] = {}
    session = stack.enter_context(segmenter.backend.open(segmenter.bundle))
    for seed, (name, spec) in enumerate(segmenter.bundle.graphs.items()):
        own = {**axes, "E": 1} if name == "text_encoder" else axes
        given[name] = {
            **probe_inputs(spec, {axis.name: own[axis.name] for axis in spec.axes}, seed),
            **{t.name: values[t.name] for t in spec.inputs if t.name in values},
        }
        outputs: dict[str, Tensor] = {}
        for _ in range(max(1, setup.graph_warm_up)):
            outputs = session.graphs[name].run(given[name])
        values |= {key: value for key, value in outputs.items() if key in _ON_DEVICE}
    setup.synchronise()
    return _Graphs(session, given)


def _graph_turn(setup: Setup, graph: Graph, inputs: Mapping[str, Tensor]) -> list[float]:
    graph.run(inputs)
    setup.synchronise()
    seconds: list[float] = []
    for _ in range(setup.graph_runs):
        started = time.perf_counter()
        graph.run(inputs)
        setup.synchronise()
        seconds.append(time.perf_counter() - started)
    return seconds


@dataclass(frozen=True)
class _Job:
    times: JobTimes
    clocks: dict[str, Any]


def time_jobs(setup: Setup, opened: Opened) -> dict[str, Any]:
    """Measure whole jobs on a video file: decode, upload, infer, masks down, encode.

    A first job of each back end is not measured; it opens codecs and meets the video's size.
    """

    def job(name: str) -> _Job:
        out = setup.folder / f"job-{name.replace(' ', '-')}"
        with watching(setup.read) as clocks:
            texts = texts_of(setup.request)
            times = time_job(opened[name], setup.video, texts, out)
        return _Job(times, clocks)

    def ready(name: str) -> str:
        job(name)
        return name

    names, missing = make_each({name: partial(ready, name) for name in opened})
    found, failed = in_turn(names, setup.rounds, lambda name, _: job(name))
    contenders = {
        name: {
            "frames": jobs[0].times.frames,
            "frames_per_second": spread_of([one.times.frames_per_second for one in jobs]),
            "stages": _mean_stages([one.times for one in jobs]),
            "clocks": [one.clocks for one in jobs],
        }
        for name, jobs in found.items()
    }
    figures = _figures(setup, contenders, missing | failed)
    return {**figures, "video": setup.video.name}


def _mean_stages(jobs: Sequence[JobTimes]) -> dict[str, dict[str, Any]]:
    """Return each stage's milliseconds a call, of all rounds."""
    return {
        stage: spread_of([job.stages[stage]["mean_milliseconds"] for job in jobs])
        for stage in jobs[0].stages
    }


def _medians(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the median milliseconds of each round, and their spread."""
    return spread_of([float(np.median(seconds) * 1e3) for seconds in rounds])


def _figures(setup: Setup, contenders: dict[str, Any], missing: dict[str, str]) -> dict[str, Any]:
    return {"rounds": setup.rounds, "contenders": contenders, "missing": missing}


def masks_j_and_f(ours: Masks, theirs: Masks) -> float:
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
