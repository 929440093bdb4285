"""List what the CPU benchmark measures: sections that run one after the other, each on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS
from rvos_deploy.benchmarks.cpu_jobs import measure_jobs
from rvos_deploy.benchmarks.cpu_length import measure_length
from rvos_deploy.benchmarks.cpu_models import MODELS, Bundles
from rvos_deploy.benchmarks.cpu_processes import first_mask, peak_memory
from rvos_deploy.benchmarks.cpu_streams import DecodedClip, Point, measure_point
from rvos_deploy.benchmarks.timing import Clip, decode_frames, render_clip
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.progress import StepProgress

Result = dict[str, Any]

CLIP_FRAMES = 24
"""Frames of the rendered clip; longer streams repeat it."""


@dataclass(frozen=True)
class Amounts:
    """Choose how much is measured.

    Args:
        frames: by model, of the stream with one expression.
        crowd: frames of the stream with eight expressions.
        sweep: frames of each point of a sweep.
        expressions: points of the sweep beside 1 and 8.
        sizes: points of the sweep beside the bundle's own.
        memories: points of the sweep, in frames.
        length: frames of the long stream.
        repeats: calls of the operator alone, and fresh processes (a fifth of it).
        job: frames of a whole job.
    """

    frames: Mapping[str, int]
    crowd: int
    sweep: int
    expressions: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    memories: tuple[int, ...]
    length: int
    repeats: int
    job: int


FULL = Amounts(
    frames={"tiny": 80, "base": 8, "onlinerefer-r50": 8, "large": 4},
    crowd=24,
    sweep=8,
    expressions=(2, 4, 16),
    sizes=((96, 160), (256, 448), (384, 640)),
    memories=(4, 16, 64),
    length=1500,
    repeats=25,
    job=96,
)
"""About 20 minutes on two cores."""

QUICK = Amounts(
    frames={"tiny": 4, "base": 1, "onlinerefer-r50": 1, "large": 1},
    crowd=2,
    sweep=2,
    expressions=(2,),
    sizes=((96, 160),),
    memories=(2,),
    length=60,
    repeats=5,
    job=10,
)
"""Shows that the command works; the figures mean little."""


@dataclass(frozen=True)
class Setup:
    """Hold what all sections share.

    Args:
        bundles: where the bundles are.
        contenders: names of those that run here.
        threads: for each contender's arithmetic.
        amounts: how much is measured.
        folder: for files that are not kept.
        progress: called with each step.
        clips: rendered so far, by their frames.
    """

    bundles: Bundles
    contenders: tuple[str, ...]
    threads: int
    amounts: Amounts
    folder: Path
    progress: StepProgress
    clips: dict[int, Clip] = field(default_factory=dict)

    def clip(self, frames: int = CLIP_FRAMES) -> Clip:
        """Return a rendered clip of at least so many frames."""
        if frames not in self.clips:
            self.clips[frames] = render_clip(self.folder / f"clip-{frames}.mp4", frames)
        return self.clips[frames]

    def decoded(self) -> DecodedClip:
        """Return the usual clip, decoded."""
        clip = self.clip()
        return DecodedClip(decode_frames(clip.path, CLIP_FRAMES)[0], clip.texts)

    def open_for(
        self, contenders: tuple[str, ...], model: str
    ) -> tuple[dict[str, Bundle], dict[str, str]]:
        """Return the bundle of each contender, and why contenders have none."""
        return self.bundles.open_for(contenders, model, self.clip().path, self.progress)


Work = Callable[[Setup], Result]


@dataclass(frozen=True)
class Section:
    """Hold one part of the benchmark: its group, for ``--only``, and its work."""

    group: str
    work: Work


GROUPS = ("processes", "operator", *MODELS, "job", "sweeps")
"""Values of ``--only``."""


def plan(amounts: Amounts) -> dict[str, Section]:
    """Return the sections by name, in the order in which they run.

    Fresh processes come first, because they compete with nothing then.
    """
    sections = {
        "first mask": Section("processes", _first_mask),
        "peak memory": Section("processes", _peak_memory),
        "operator": Section("operator", _operator),
    }
    for point in points(amounts):
        sections[f"stream: {point.name}"] = Section(point.model, partial(_stream, point, True))
    sections["job"] = Section("job", _job)
    for point in sweep_points(amounts):
        sections[f"stream: {point.name}"] = Section("sweeps", partial(_stream, point, False))
    sections["length"] = Section("sweeps", _length)
    return sections


def points(amounts: Amounts) -> list[Point]:
    """Return the streams that targets read."""
    found = []
    for name, model in MODELS.items():
        size = None if model.packaged else model.size
        found.append(Point(name, size, 1, amounts.frames[name]))
        if model.packaged:
            found.append(Point(name, size, 8, amounts.crowd))
    return found


def sweep_points(amounts: Amounts) -> list[Point]:
    """Return the streams of tiny that differ from it in one thing."""
    base = Point("tiny", frames=amounts.sweep)
    return [
        *(replace(base, expressions=count) for count in amounts.expressions),
        *(replace(base, size=size) for size in amounts.sizes),
        *(replace(base, memory=memory) for memory in amounts.memories),
    ]


def runtime_contenders(names: Sequence[str]) -> list[str]:
    """Return those that run without PyTorch, on the bundle itself, in fp32."""
    return [
        name
        for name in names
        if CONTENDERS[name].package != "torch"
        and not CONTENDERS[name].own_bundle
        and CONTENDERS[name].arithmetic == "fp32"
    ]


def _stream(point: Point, main: bool, setup: Setup) -> Result:
    bundles, missing = setup.open_for(setup.contenders, point.model)
    found = measure_point(point, bundles, setup.decoded(), setup.threads, setup.progress)
    return {**found, "main": main, "missing": missing}


def _job(setup: Setup) -> Result:
    names = tuple(name for name in setup.contenders if CONTENDERS[name].package != "torch")
    bundles, _ = setup.open_for(names, "tiny")
    if not bundles:
        raise InputError("no contender runs a whole job; choose onnxruntime or openvino")
    clip = setup.clip(setup.amounts.job)
    return measure_jobs(bundles, clip, setup.amounts.job, setup.threads, 3, setup.progress)


def _first_mask(setup: Setup) -> Result:
    bundle, repeats = str(setup.bundles.path("tiny")), setup.amounts.repeats // 5
    clip = setup.clip().path
    found = {}
    for name in ("auto", *runtime_contenders(setup.contenders)):
        setup.progress(f"first mask of a fresh process: {name}")
        found[name] = first_mask(clip, bundle, name, repeats)
    return {"contenders": found}


def _peak_memory(setup: Setup) -> Result:
    path, clip = setup.bundles.path("tiny"), setup.clip().path
    found = {}
    for name in setup.contenders:
        if not CONTENDERS[name].own_bundle:
            setup.progress(f"peak memory of a fresh process: {name}")
            found[name] = peak_memory(name, path, clip, setup.threads)
    return {"contenders": found}


def _operator(setup: Setup) -> Result:
    import torch

    from rvos_deploy.benchmarks.deformable_attention import SHAPES, measure

    torch.set_num_threads(setup.threads)
    shapes = {}
    for name in SHAPES:
        setup.progress(f"deformable attention alone: {name}")
        shapes[name] = measure(name, setup.threads, setup.amounts.repeats)
    return {"shapes": shapes}


def _length(setup: Setup) -> Result:
    names = runtime_contenders(setup.contenders)
    if not names:
        raise InputError("no contender runs a long stream; choose onnxruntime or openvino")
    name = names[-1]
    bundle = setup.open_for((name,), "tiny")[0][name]
    setup.progress(f"{setup.amounts.length} frames by {name}")
    backend = CONTENDERS[name].make(bundle, setup.threads)
    return {
        "contender": name,
        **measure_length(bundle, backend, setup.decoded(), setup.amounts.length),
    }
