"""Measure where a frame's time goes: every stage, end to end, overlapped, and against eager
PyTorch.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rvos_deploy.benchmarks.timing import (
    EXPRESSIONS,
    decode_frames,
    mask_parity,
    push_through,
    render_clip,
    summarise,
    texts_of,
)
from rvos_deploy.environment import machine, peak_memory_bytes, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.progress import StepProgress, ignore_steps
from rvos_deploy.redaction import redact
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame

WARM_UP = 3
"""Frames that run before anything is measured."""

MINIMUM_J_AND_F = 0.999
"""Below this J&F between our masks and PyTorch's, a comparison of speed means nothing."""


@dataclass(frozen=True)
class LatencyOptions:
    """Choose the measured work.

    Args:
        video: the video; None: a rendered Moving Sprites clip of 854x480.
        expressions: number of expressions that are followed at once.
        frames: number of frames to measure after the warm-up.
        settings: of the stream.
    """

    video: str | None = None
    expressions: int = 1
    frames: int = 30
    settings: StreamSettings = field(default_factory=StreamSettings)


def benchmark_latency(
    segmenter: Segmenter,
    options: LatencyOptions | None = None,
    *,
    reference: Backend | None = None,
    progress: StepProgress = ignore_steps,
) -> dict[str, Any]:
    """Measure a loaded bundle on a video.

    Args:
        segmenter: the bundle on a back end.
        options: what is measured; None: the defaults.
        reference: another back end, which runs in turn on the same frames.
        progress: called with each measurement.

    Returns:
        A record that is ready for JSON.

    Raises:
        InputError: the video has too few frames.
        ParityError: the reference's masks differ from ours, so the ratio would mean nothing.
    """
    options = options or LatencyOptions()
    video, frames = options.video, options.frames
    settings = segmenter.with_size(options.settings)
    with tempfile.TemporaryDirectory(prefix="rvos-deploy-") as folder:
        source = video
        known: Sequence[str] = EXPRESSIONS
        if source is None:
            clip = render_clip(Path(folder) / "sprites.mp4", frames + WARM_UP)
            source, known = clip.path, clip.texts
        texts = texts_of(known, options.expressions)
        progress("decoding")
        images, decode = _decode(source, frames + WARM_UP)
        progress("stages")
        stages, end_to_end = _measure_stages(segmenter, images, texts, settings)
        progress("overlapped")
        overlapped = _measure_overlapped(segmenter, source, texts, settings, len(images), folder)
    result: dict[str, Any] = {
        "schema": "rvos-deploy/benchmark/latency/1",
        "command": "benchmark",
        "versions": {**versions("av"), "backend": segmenter.describe_backend()},
        "machine": machine(),
        "bundle": str(segmenter.bundle.path),
        "model": segmenter.bundle.config.name,
        "size": None if settings.size is None else list(settings.size),
        "short_side": settings.short_side,
        "input_size": list(_input_size(segmenter, images[0], settings)),
        "video": redact(video) if video else "Moving Sprites, 854x480",
        "expressions": options.expressions,
        "mode": settings.mode,
        "warm_up_frames": WARM_UP,
        "stages": {"decode": summarise(decode[WARM_UP:]), **stages},
        "end_to_end": summarise(end_to_end),
        "overlapped": overlapped,
        "memory": {"peak_bytes": peak_memory_bytes()},
    }
    if reference is not None:
        progress(f"against {reference.name}")
        result["comparison"] = _compare(segmenter, reference, images, texts, settings)
    return result


def _input_size(segmenter: Segmenter, frame: Frame, settings: StreamSettings) -> tuple[int, int]:
    """Return the (height, width) in pixels at which the network sees the frame."""
    return segmenter.geometry((frame.height, frame.width), settings).padded


def _decode(source: str, count: int) -> tuple[list[Frame], list[float]]:
    """Return frames and the seconds to decode each one. Raises InputError: they are too few."""
    images, seconds = decode_frames(source, count)
    if len(images) <= WARM_UP:
        raise InputError(
            f"{redact(source)} has {len(images)} frames; a benchmark needs more than the {WARM_UP} "
            "that warm up"
        )
    return images, seconds


def _measure_stages(
    segmenter: Segmenter, frames: Sequence[Frame], texts: list[str], settings: StreamSettings
) -> tuple[dict[str, Any], list[float]]:
    """Measure the stages without overlap: summaries by stage, and seconds per frame."""
    times: dict[str, list[float]] = defaultdict(list)
    end_to_end: list[float] = []
    with segmenter.stream(texts, settings, on_stage=lambda s, t: times[s].append(t)) as stream:
        for frame in islice(frames, WARM_UP):
            push_through(stream, frame)
        times.clear()
        for frame in frames[WARM_UP:]:
            started = time.perf_counter()
            push_through(stream, frame)
            end_to_end.append(time.perf_counter() - started)
        for _ in stream.flush():
            pass
    return {stage: summarise(seconds) for stage, seconds in times.items()}, end_to_end


def _measure_overlapped(
    segmenter: Segmenter,
    source: str,
    texts: list[str],
    settings: StreamSettings,
    count: int,
    folder: str,
) -> dict[str, Any]:
    """Measure frames per second of the whole job as ``run`` does it, with writing."""
    options = RunOptions(settings, max_frames=count)
    report = run(segmenter, source, texts, Path(folder) / "out", options=options)
    return {
        "frames": report.frames,
        "seconds": report.seconds,
        "frames_per_second": report.frames_per_second,
    }


def _compare(
    segmenter: Segmenter,
    reference: Backend,
    frames: Sequence[Frame],
    texts: list[str],
    settings: StreamSettings,
) -> dict[str, Any]:
    """Run both back ends on the same frames in turn, in this process; compare masks, then speed."""
    # Empty masks would agree whatever the networks compute.
    settings = replace(settings, fallback="top1")
    seconds: tuple[list[float], list[float]] = ([], [])
    results: tuple[list[FrameMasks], list[FrameMasks]] = ([], [])
    with (
        Segmenter(segmenter.bundle, reference) as other,
        segmenter.stream(texts, settings) as ours,
        other.stream(texts, settings) as theirs,
    ):
        for number, frame in enumerate(frames):
            for side, stream in enumerate((ours, theirs)):
                started = time.perf_counter()
                results[side].extend(push_through(stream, frame))
                if number >= WARM_UP:
                    seconds[side].append(time.perf_counter() - started)
        for side, stream in enumerate((ours, theirs)):
            results[side].extend(stream.flush())
    j_and_f = mask_parity(*results)
    if j_and_f < MINIMUM_J_AND_F:
        raise ParityError(
            f"masks of {segmenter.backend.name} and {reference.name} agree to J&F {j_and_f:.4f} "
            f"only (needed: {MINIMUM_J_AND_F}), so their speeds cannot be compared; run "
            "'rvos-deploy verify'"
        )
    return {
        "reference": reference.describe(),
        "j_and_f": j_and_f,
        "ours": summarise(seconds[0]),
        "theirs": summarise(seconds[1]),
        "ratio": float(np.sum(seconds[1]) / np.sum(seconds[0])),
    }
