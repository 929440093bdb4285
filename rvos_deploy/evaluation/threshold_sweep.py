"""Score a bundle at many thresholds, offline and online, in one pass over each video.

The threshold decides only which queries belong to an answer. So backbone and frame decoder run once
per frame for both modes, the video decoder once per decision, and the mask head once per different
answer. Thresholds that choose the same queries share one mask, one J and one F.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets import DataSplit, VideoRecord
from rvos_deploy.evaluation.bundle_masks import FRAMES_AHEAD
from rvos_deploy.evaluation.choices import Overlaps
from rvos_deploy.evaluation.evaluate import DEFAULT_OPTIONS, ScoringOptions, check_split
from rvos_deploy.evaluation.overlaps import Groups, resolve_overlaps
from rvos_deploy.evaluation.predictions import CHUNK
from rvos_deploy.evaluation.protocols import (
    ExpressionScore,
    Protocol,
    VideoScores,
    protocol_named,
)
from rvos_deploy.evaluation.scoring import map_in_order
from rvos_deploy.evaluation.sweep_scoring import (
    SweepChunk,
    SweepScores,
    SweptFrame,
    score_sweep_chunk,
)
from rvos_deploy.graph_io.frame_geometry import upsample_all_logits, upsample_masks
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.progress import CountProgress
from rvos_deploy.runtime.decided_frame import DecidedFrame, Render
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import Fallback, Mode, StreamSettings
from rvos_deploy.video.pipeline import prefetch

GRID = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))
"""Default thresholds: 0.1 to 0.9 by 0.05."""

_CHUNK_BYTES = 2**25
"""Bytes of masks that one worker scores at a time; a frame has one mask per different answer."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Hold the results of a sweep over T thresholds.

    Args:
        protocol: name of the protocol.
        split: the evaluated split.
        thresholds: [T], ascending, with the bundle's own thresholds.
        scores: by mode [T], then one per expression.
        settings: settings of the streams by mode; their thresholds are the bundle's own.
        overlaps: treatment of pixels that several objects claim.
        seconds: wall-clock time.
    """

    protocol: str
    split: DataSplit
    thresholds: tuple[float, ...]
    scores: Mapping[Mode, tuple[tuple[ExpressionScore, ...], ...]]
    settings: Mapping[Mode, StreamSettings]
    overlaps: Overlaps
    seconds: float


def sweep_thresholds(
    segmenter: Segmenter,
    split: DataSplit,
    protocol: str = "mevis",
    online: StreamSettings | None = None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    at: Iterable[float] = GRID,
) -> Sweep:
    """Score a loaded bundle at many thresholds in both modes.

    Each row equals the result of ``evaluate_bundle`` with that threshold and mode.

    Args:
        segmenter: the result of ``rvos_deploy.load``.
        split: a split with ground truth, from a reader of data sets.
        protocol: ``mevis``, ``ref-youtube-vos`` or ``ref-davis``.
        online: settings of the online stream. The offline stream has the same ``size`` and
            ``fallback``, and reads every frame. The fallback applies at every threshold. None:
            lookahead 0, with the protocol's fallback.
        options: how masks are scored, and the callback for progress.
        at: thresholds in 0..1; the bundle's own two are added.

    Raises:
        InputError: as in ``evaluate``, or a threshold lies outside 0..1.
    """
    started = time.perf_counter()
    rules = protocol_named(protocol)
    check_split(rules, split)
    resolved = rules.overlaps(options.overlaps)
    settings = _both_modes(segmenter, online or StreamSettings(fallback=rules.fallback))
    own = [one.threshold for one in settings.values() if one.threshold is not None]
    checked = [StreamSettings(threshold=value).threshold for value in at]
    candidates = tuple(sorted({*own, *(value for value in checked if value is not None)}))
    run = _Run(segmenter, split, rules, candidates, settings, resolved, options.progress)
    scores = run.collect(map_in_order(score_sweep_chunk, run.chunks(), options.jobs))
    seconds = time.perf_counter() - started
    return Sweep(protocol, split, candidates, scores, settings, resolved, seconds)


def _both_modes(segmenter: Segmenter, online: StreamSettings) -> dict[Mode, StreamSettings]:
    offline = replace(online, mode="offline", lookahead=0, memory=None, anchors=0)
    by_mode: dict[Mode, StreamSettings] = {"offline": offline, "online": online}
    return {
        mode: replace(by_mode[mode], mode=mode, threshold=segmenter.bundle.threshold(mode))
        for mode in sorted(get_args(Mode))
    }


def sweep_render(
    candidates: Sequence[float],
    fallback: Fallback,
    groups: Groups | None,
    swept: Callable[[SweptFrame], None],
) -> Render:
    """Return a render that passes a frame's different masks at T thresholds to ``swept``.

    ``groups``: rows of each multi-object prediction, whose overlaps are resolved; None keeps
    overlaps. The stream's own result has no masks.
    """

    def render(frame: DecidedFrame) -> NDArray[np.bool_]:
        values = np.stack([thresholds(frame.scores, value, fallback) for value in candidates])
        rows = np.arange(len(frame.scores))
        passing = frame.scores > values[..., None]
        answers, first = distinct_answers(passing, groups or [[row] for row in range(len(rows))])
        bits = []
        for chosen in first:
            logits = frame.mask_logits(values[chosen, rows])
            if groups is None:
                masks = upsample_masks(logits, frame.geometry)
            else:
                masks = resolve_overlaps(upsample_all_logits(logits, frame.geometry), groups)
            bits.append(np.packbits(masks, axis=-1))
        swept(SweptFrame(np.stack(bits), answers))
        return np.zeros((len(rows), 0, 0), np.bool_)

    return render


def distinct_answers(
    passing: NDArray[np.bool_], groups: Groups
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find thresholds that choose the same queries.

    Args:
        passing: [T,E,N], whether a query passes.
        groups: rows whose masks depend on one another; their answer combines all their choices.

    Returns:
        The answer of each threshold, [T,E], counted from 0 per expression; and one threshold of
        each answer, [K,E]. K is the largest number of answers of an expression; expressions with
        fewer repeat their last.
    """
    answers = np.zeros(passing.shape[:2], np.int64)
    first: list[list[int]] = [[] for _ in range(passing.shape[1])]
    for group in groups:
        known: dict[bytes, int] = {}
        for index, chosen in enumerate(passing[:, list(group)]):
            answer = known.setdefault(chosen.tobytes(), len(known))
            answers[index, list(group)] = answer
            for row in group:
                first[row] += [index] * (answer == len(first[row]))
    most = max(map(len, first))
    padded = [row + row[-1:] * (most - len(row)) for row in first]
    return answers, np.array(padded, np.int64).T


@dataclass(frozen=True, eq=False)
class _Run:
    """Run one sweep: ``chunks`` yields work to score, ``collect`` reads scores in that order."""

    segmenter: Segmenter
    split: DataSplit
    rules: Protocol
    candidates: tuple[float, ...]
    settings: Mapping[Mode, StreamSettings]
    overlaps: Overlaps
    progress: CountProgress

    @property
    def videos(self) -> list[VideoRecord]:
        return [video for video in self.split.videos if video.expressions]

    @property
    def frames(self) -> int:
        return sum(len(video.frames) for video in self.videos)

    def chunks(self) -> Iterator[SweepChunk]:
        done = 0

        def on_frame() -> None:
            nonlocal done
            done += 1
            self.progress("frames", done, self.frames)

        for video in self.videos:
            objects = None if self.rules.objects is None else self.rules.objects(video)
            waiting: dict[Mode, list[SweptFrame]] = {mode: [] for mode in self.settings}
            given = dict.fromkeys(self.settings, 0)
            for mode, frame in self._swept(video, on_frame):
                frames = waiting[mode]
                frames.append(frame)
                stop = given[mode] + len(frames)
                full = len(frames) == CHUNK or sum(f.bits.nbytes for f in frames) >= _CHUNK_BYTES
                if full or stop == len(video.frames):
                    part = video.part(given[mode], stop)
                    yield SweepChunk(mode, part, tuple(frames), objects)
                    waiting[mode], given[mode] = [], stop

    def _swept(
        self, video: VideoRecord, on_frame: Callable[[], None]
    ) -> Iterator[tuple[Mode, SweptFrame]]:
        """Yield every frame of a video once per mode."""
        texts = [expression.text for expression in video.expressions]
        images = (video.image(index) for index in range(len(video.frames)))
        groups = None
        if self.overlaps == "argmax" and self.rules.groups is not None:
            groups = self.rules.groups(video)
        settings = list(self.settings.values())
        swept: deque[tuple[Mode, SweptFrame]] = deque()

        def render(mode: Mode) -> Render:
            def keep(frame: SweptFrame) -> None:
                swept.append((mode, frame))

            return sweep_render(self.candidates, settings[0].fallback, groups, keep)

        renders = [render(mode) for mode in self.settings]
        with self.segmenter.streams_in_step(texts, settings, renders) as streams:
            for image in prefetch(images, FRAMES_AHEAD):
                streams.push(image)
                yield from _drain(swept)
                on_frame()
            for stream in streams.streams:
                for _ in stream.flush():
                    yield from _drain(swept)

    def collect(
        self, results: Iterator[SweepScores]
    ) -> dict[Mode, tuple[tuple[ExpressionScore, ...], ...]]:
        """Join the chunks of each video, and score it at every threshold in every mode."""
        rows: dict[Mode, list[list[ExpressionScore]]] = {
            mode: [[] for _ in self.candidates] for mode in self.settings
        }
        done, total = 0, self.frames * len(self.settings)
        for video in self.videos:
            parts: dict[Mode, list[SweepScores]] = {mode: [] for mode in self.settings}
            missing = len(video.frames) * len(self.settings)
            while missing:
                part = next(results)
                parts[part.mode].append(part)
                missing, done = missing - part.frames, done + part.frames
                self.progress("scores", done, total)
            for mode, of_mode in parts.items():
                for index, line in enumerate(rows[mode]):
                    line += self.rules.score(_joined(video, of_mode, index))
        return {mode: tuple(map(tuple, lines)) for mode, lines in rows.items()}


def _drain(swept: deque[tuple[Mode, SweptFrame]]) -> Iterator[tuple[Mode, SweptFrame]]:
    while swept:
        yield swept.popleft()


def _joined(video: VideoRecord, parts: list[SweepScores], index: int) -> VideoScores:
    """Return the scores of a video's frames at one threshold; a network's masks are complete."""
    return VideoScores(
        video,
        np.concatenate([part.j[index] for part in parts], axis=-1),
        np.concatenate([part.f[index] for part in parts], axis=-1),
        np.logical_and.reduce([part.empty[index] for part in parts]),
        tuple(() for _ in video.expressions),
    )
