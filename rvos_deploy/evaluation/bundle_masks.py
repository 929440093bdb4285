"""Predict with a bundle: one stream per video, all its expressions on one backbone pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.datasets import DataSplit, VideoRecord
from rvos_deploy.evaluation.evaluate import (
    DEFAULT_OPTIONS,
    Evaluation,
    ScoringOptions,
    evaluate,
)
from rvos_deploy.evaluation.overlaps import Groups, argmax_masks
from rvos_deploy.evaluation.predictions import Predict
from rvos_deploy.evaluation.protocols import protocol_named
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.pipeline import prefetch

FRAMES_AHEAD = 4
"""Frames decoded while the graphs run."""


def bundle_masks(
    segmenter: Segmenter,
    settings: StreamSettings,
    on_frame: Callable[[], None] | None = None,
    groups: Callable[[VideoRecord], Groups] | None = None,
) -> Predict:
    """Make a predictor of a loaded bundle.

    Args:
        segmenter: the result of ``rvos_deploy.load``.
        settings: mode, threshold, fallback, size and memory, as for any stream.
        on_frame: called after each pushed frame, for a progress bar.
        groups: returns the expressions of a video that form one multi-object prediction, whose
            overlaps are resolved by the argmax of mask logits. None: overlaps are kept.
    """
    threshold = resolved_threshold(segmenter, settings)

    def predict(video: VideoRecord) -> Iterator[NDArray[np.bool_]]:
        texts = [expression.text for expression in video.expressions]
        images = (video.image(index) for index in range(len(video.frames)))
        render = None
        if groups is not None:
            render = argmax_masks(threshold, settings.fallback, groups(video))
        with segmenter.stream(texts, settings, render=render) as stream:

            def pushed() -> Iterator[NDArray[np.bool_]]:
                for image in prefetch(images, FRAMES_AHEAD):
                    decided = stream.push(image)
                    if on_frame is not None:
                        on_frame()
                    yield from (result.masks for result in decided)

            yield from pushed()
            yield from (result.masks for result in stream.flush())

    return predict


def evaluate_bundle(
    segmenter: Segmenter,
    data: str | Path | DataSplit,
    protocol: str = "mevis",
    settings: StreamSettings | None = None,
    options: ScoringOptions = DEFAULT_OPTIONS,
    *,
    submission: str | Path | None = None,
) -> Evaluation:
    """Run a loaded bundle over a split and score it; no mask is written to disk.

    Args:
        segmenter: the result of ``rvos_deploy.load``.
        data: as in :func:`rvos_deploy.evaluation.evaluate.evaluate`.
        protocol: as in ``evaluate``.
        settings: None: the family's default mode, with the protocol's fallback.
        options: how masks are scored.
        submission: as in ``evaluate``.
    """
    rules = protocol_named(protocol)
    split = data if isinstance(data, DataSplit) else rules.read(Path(data))
    mode = segmenter.bundle.network.default_mode
    settings = settings or StreamSettings(mode=mode, fallback=rules.fallback)
    groups = rules.groups if rules.overlaps(options.overlaps) == "argmax" else None
    total = sum(len(video.frames) for video in split.videos if video.expressions)
    done = 0

    def on_frame() -> None:
        nonlocal done
        done += 1
        options.progress("frames", done, total)

    predict = bundle_masks(segmenter, settings, on_frame, groups)
    return evaluate(predict, split, protocol, options, submission=submission)


def resolved_threshold(segmenter: Segmenter, settings: StreamSettings) -> float:
    """Return the settings' threshold, or the bundle's own for their mode."""
    if settings.threshold is None:
        return segmenter.bundle.threshold(settings.mode)
    return settings.threshold


def bundle_settings(segmenter: Segmenter, settings: StreamSettings) -> dict[str, Any]:
    """Describe the bundle and its settings for a report, with defaults resolved."""
    config, settings = segmenter.bundle.config, segmenter.with_size(settings)
    return {
        "bundle": str(segmenter.bundle.path),
        "model": config.name,
        "precision": segmenter.bundle.precision,
        **asdict(settings),
        "memory": settings.window,
        "threshold": resolved_threshold(segmenter, settings),
        "size": None if settings.size is None else list(settings.size),
    }
