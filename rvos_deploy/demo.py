"""Run the demo: segment and score a video that was not in training.

The demo uses only what users have: the video is an ordinary MP4, and ``run`` writes the masks. Only
the ground truth is special: Moving Sprites render it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy import stopping
from rvos_deploy.bundle.folder import bundle_files
from rvos_deploy.datasets.moving_sprites import Expression, Kind, Sample, sample_video
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.metrics import frame_scores
from rvos_deploy.evaluation.protocols import ExpressionScore
from rvos_deploy.evaluation.report import accuracies_and_means
from rvos_deploy.files import discard_stale, replacing
from rvos_deploy.images import read_image
from rvos_deploy.json_file import write_json
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.progress import CountProgress, ignore_counts
from rvos_deploy.runtime.run import RunOptions, run
from rvos_deploy.runtime.run_folder import run_folder
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import read_video, write_montage
from rvos_deploy.video.sinks.masks import MASKS

SCHEMA = "rvos-deploy/demo/1"
VIDEO, PICTURE, METRICS = WRITTEN = ("video.mp4", "picture.png", "metrics.json")
"""Files of a demo beside the files of a run."""
KINDS: tuple[Kind, ...] = ("motion", "appearance", "plural", "no_target")
"""Kinds of expressions that the video must have; up to two motions are shown."""
MOTIONS = 2
SIZE = (256, 448)
SEED = 2024
"""Seed of the valid split, which shares no seed, background or pair of colour and shape with
training. The video is the first one with every kind; it was not chosen by the network's results.
"""


@dataclass(frozen=True)
class DemoReport:
    """Hold the scores of the expressions, in their order, and the run's frames per second."""

    out: Path
    scores: tuple[ExpressionScore, ...]
    frames_per_second: float


def run_demo(
    segmenter: Segmenter,
    out: Path,
    *,
    seed: int = SEED,
    command: str = "",
    progress: CountProgress = ignore_counts,
) -> DemoReport:
    """Render a video, segment it, and compare the masks with the ground truth.

    Writes into ``out``: ``video.mp4``, ``masks/``, ``overlay.mp4`` and ``result.json`` as ``run``
    does, ``picture.png`` (masks tinted, ground truth outlined) and ``metrics.json``.

    Args:
        segmenter: the result of ``rvos_deploy.load``.
        out: folder; files of an earlier demo are replaced.
        seed: seed of Moving Sprites' valid split.
        command: recorded in the results.
        progress: as in ``RunOptions``.

    Raises:
        InputError: ``out`` cannot be written, or holds another program's files.
    """
    with run_folder(out):
        _check_folder(out, segmenter)
        for name in WRITTEN:
            discard_stale(out, name)
        return _run_demo(segmenter, out, seed, command, progress)


def _check_folder(out: Path, segmenter: Segmenter) -> None:
    """Refuse to replace another program's files, or the bundle's."""
    metrics = out / METRICS
    ours = metrics.is_file() and metrics.read_text(encoding="utf-8", errors="replace")
    for name in WRITTEN:
        if (out / name).exists() and f'"schema": "{SCHEMA}"' not in (ours or ""):
            raise InputError(
                f"{out / name} was not written by a demo, so it is not replaced; move it, or "
                "choose another --out"
            )
    refuse_overlap(bundle_files(segmenter.bundle.path), [out / name for name in WRITTEN])


def _run_demo(
    segmenter: Segmenter, out: Path, seed: int, command: str, progress: CountProgress
) -> DemoReport:
    # An earlier demo's video is kept until its masks are replaced.
    with replacing(out / VIDEO) as temporary:
        sample = sample_video(temporary, seed=seed, size=SIZE, kinds=KINDS)
        shown = chosen_expressions(sample.expressions)
        options = RunOptions(
            StreamSettings(mode="offline"),
            command=command,
            name=str(out / VIDEO),
            progress=progress,
        )
        texts = [expression.text for expression in shown]
        report = run(segmenter, temporary, texts, out, options=options)
        if report.stopped is not None:
            # A part of the video has no score.
            raise stopping.stop_for_reason(
                report.stopped, f"{report.frames} frames are complete in {out}"
            )
        masks = _written_masks(out / MASKS, len(shown), len(sample.masks))
        scores = tuple(
            _score(sample, expression, number, masks[:, number])
            for number, expression in enumerate(shown)
        )
        # First, because this file identifies the other files as a demo's.
        write_json(out / METRICS, _metrics(segmenter, sample, scores, command, report.seconds))
        _draw(out / PICTURE, sample, shown, masks, scores)
    return DemoReport(out, scores, report.frames_per_second)


def chosen_expressions(expressions: Sequence[Expression]) -> list[Expression]:
    """Return two motions and one expression of each other kind, in the order of KINDS."""
    return [
        expression
        for kind in KINDS
        for expression in [e for e in expressions if e.kind == kind][
            : MOTIONS if kind == "motion" else 1
        ]
    ]


def _written_masks(folder: Path, expressions: int, frames: int) -> NDArray[np.bool_]:
    """Read the masks from the disk, bool [T,E,H,W], because users get these files."""
    rows = []
    for t in range(frames):
        files = [folder / str(e) / f"{t:05d}.png" for e in range(expressions)]
        rows.append([np.asarray(read_image(file)) > 0 for file in files])
    return np.array(rows)


def _score(
    sample: Sample, expression: Expression, number: int, masks: NDArray[np.bool_]
) -> ExpressionScore:
    found = frame_scores(masks, sample.truth(expression))
    return ExpressionScore(
        video=sample.video.name,
        expression=str(number),
        text=expression.text,
        kind=expression.kind,
        j=found.j_mean,
        f=found.f_mean,
        frames=len(masks),
        missing_frames=0,
        no_target=not expression.targets,
        predicted_empty=not masks.any(),
    )


def _draw(
    file: Path,
    sample: Sample,
    shown: Sequence[Expression],
    masks: NDArray[np.bool_],
    scores: Sequence[ExpressionScore],
) -> None:
    images = [frame.host_image() for frame in read_video(sample.path)]
    truth = np.stack([sample.truth(expression) for expression in shown], axis=1)
    labels = [f"{row.text}   J&F {row.j_and_f:.2f}" for row in scores]
    write_montage(file, images, masks, truth, labels)


def _metrics(
    segmenter: Segmenter,
    sample: Sample,
    scores: Sequence[ExpressionScore],
    command: str,
    seconds: float,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": command,
        "bundle": str(segmenter.bundle.path),
        "video": {"name": sample.video.name, "seed": sample.video.seed, "size": list(SIZE)},
        **accuracies_and_means(scores),
        "by_expression": [{**asdict(row), "j_and_f": row.j_and_f} for row in scores],
        "seconds": seconds,
        "versions": versions("av", "pillow") | {"backend": segmenter.describe_backend()},
        "machine": machine(),
    }
