"""Time whole streams: all contenders in turn, in one process, on the same frames.

Masks are compared before any time is reported.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS, REFERENCE
from rvos_deploy.benchmarks.timing import mask_parity, push_through, summarise, texts_of
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.frames import Frame

MINIMUM_J_AND_F = 0.999
"""Least J&F of the masks of two contenders that compute in fp32; below it, no speed is reported."""

TURN = 4
"""Frames that a contender runs before the next one's turn. The first of them finds its weights
outside the caches, and the others show the speed of a stream that runs alone."""

WARM_UP = 3
"""Frames of each stream that run before anything is measured; OpenVINO compiles for a size when it
has come three times."""

TEXTS = 6
"""Expressions whose encoding is timed."""


@dataclass(frozen=True)
class Point:
    """Choose one measurement.

    Args:
        model: name of the model.
        size: (height, width) of the box in pixels; None: the bundle's.
        expressions: followed at once.
        frames: measured, after the warm-up.
        memory: frames that the video decoder reads.
        contenders: names; None: all that are chosen.
    """

    model: str
    size: tuple[int, int] | None = None
    expressions: int = 1
    frames: int = 24
    memory: int | None = None
    contenders: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Return the key of the result."""
        size = "own size" if self.size is None else f"{self.size[0]}x{self.size[1]}"
        memory = "" if self.memory is None else f", memory {self.memory}"
        return f"{self.model}, {size}, {self.expressions} expressions{memory}"

    @property
    def settings(self) -> StreamSettings:
        """Return the settings of the stream: an empty mask would agree with any other."""
        return StreamSettings(size=self.size, memory=self.memory, fallback="top1")

    @property
    def warm_up(self) -> int:
        """Return the frames before the measurement: until the memory is full, where it matters."""
        return max(WARM_UP, self.memory or 0)


@dataclass(frozen=True)
class DecodedClip:
    """Hold the frames of a video, and expressions for them."""

    frames: Sequence[Frame]
    texts: Sequence[str]


@dataclass
class _Side:
    """Collect what one contender gives."""

    stream: Stream
    backend: dict[str, str]
    stages: dict[str, list[float]]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    text: list[float] = field(default_factory=list)
    turn: list[FrameMasks] = field(default_factory=list)
    parity: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def push(self, frame: Frame, measured: bool) -> None:
        """Push a frame and wait for its masks."""
        started, cpu = time.perf_counter(), time.process_time()
        results = push_through(self.stream, frame)
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        self.turn.extend(results)
        if measured:
            self.seconds.append(seconds)
            self.cpu_seconds.append(used)
        else:
            self.stages.clear()


def measure_point(
    point: Point,
    bundles: Mapping[str, Bundle],
    video: DecodedClip,
    threads: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run all contenders in turn.

    Args:
        point: what is measured.
        bundles: the bundle of each contender, by the contender's name.
        video: its frames and expressions repeat if they are fewer than ``point`` needs.
        threads: for each contender's arithmetic.
        progress: called with each step.

    Returns:
        A record by contender. A contender that computes in fp32 and gives other masks than the
        others has ``refused`` in place of times.
    """
    texts, frames = texts_of(video.texts, point.expressions), video.frames
    with ExitStack() as stack:
        sides: dict[str, _Side] = {}
        geometry = None
        for name, bundle in bundles.items():
            progress(f"{point.name}: open {name}")
            segmenter = stack.enter_context(
                Segmenter(bundle, CONTENDERS[name].make(bundle, threads))
            )
            sides[name] = _open(stack, segmenter, texts, point.settings)
            geometry = segmenter.geometry(
                (frames[0].height, frames[0].width), segmenter.with_size(point.settings)
            )
        progress(f"{point.name}: run")
        _run_in_turn(sides, point, frames)
        contenders = _records(sides)
    assert geometry is not None
    return {
        "model": point.model,
        "size": list(geometry.padded),
        "expressions": point.expressions,
        "memory": point.settings.window,
        "frames": point.frames,
        "contenders": contenders,
    }


def _open(
    stack: ExitStack, segmenter: Segmenter, texts: list[str], settings: StreamSettings
) -> _Side:
    stages: dict[str, list[float]] = defaultdict(list)
    stream = segmenter.stream(texts, settings, on_stage=lambda s, t: stages[s].append(t))
    side = _Side(stack.enter_context(stream), segmenter.backend.describe(), stages)
    for number in range(TEXTS):
        # A text of its own, because encoded texts are cached.
        started = time.perf_counter()
        segmenter.encode_text(f"{texts[number % len(texts)]} in picture {number}")
        side.text.append(time.perf_counter() - started)
    return side


def _run_in_turn(sides: Mapping[str, _Side], point: Point, frames: Sequence[Frame]) -> None:
    """Push all frames into every stream, some frames at a time; the first of a round changes."""
    total = point.warm_up + point.frames
    repeated = [frames[number % len(frames)] for number in range(total)]
    starts = [0, *range(point.warm_up, total, TURN)]
    names = list(sides)
    for turn, start in enumerate(starts):
        end = starts[turn + 1] if turn + 1 < len(starts) else total
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            for number in range(start, end):
                pushed = repeated[number]
                again = Frame(number, number / 24, pushed.image)
                sides[name].push(again, number >= point.warm_up)
        _compare_turn(sides)


def _reference(sides: Mapping[str, _Side]) -> str:
    return REFERENCE if REFERENCE in sides else next(iter(sides))


def _compare_turn(sides: Mapping[str, _Side]) -> None:
    """Compare the masks of a turn, and drop them: those of a whole run need gigabytes."""
    expected = sides[_reference(sides)].turn
    for side in sides.values():
        side.parity.append(mask_parity(side.turn, expected))
        side.areas += [float(result.masks.mean()) for result in side.turn]
    for side in sides.values():
        side.turn.clear()


def _records(sides: Mapping[str, _Side]) -> dict[str, Any]:
    """Compare masks, then summarise times."""
    reference = _reference(sides)
    records: dict[str, Any] = {}
    for name, side in sides.items():
        j_and_f = float(np.mean(side.parity))
        records[name] = {
            "backend": side.backend,
            "j_and_f": j_and_f,
            "compared_with": reference,
            "mask_area": float(np.mean(side.areas)),
        }
        if CONTENDERS[name].arithmetic == "fp32" and j_and_f < MINIMUM_J_AND_F:
            records[name]["refused"] = (
                f"its masks agree with those of {reference} to J&F {j_and_f:.4f} only (needed: "
                f"{MINIMUM_J_AND_F}), so its speed means nothing"
            )
            continue
        records[name] |= {
            "end_to_end": summarise(side.seconds),
            "cpu_milliseconds": float(np.median(side.cpu_seconds) * 1e3),
            "stages": {
                "text": summarise(side.text),
                **{stage: summarise(seconds) for stage, seconds in side.stages.items()},
            },
        }
    return records
