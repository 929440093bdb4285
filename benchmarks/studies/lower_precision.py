"""Measure the J&F that a lower precision costs, in pairs: float32 and the lower one.

``python -m rvos_deploy.benchmarks.studies.lower_precision tiny --hint bf16 --data DIR --json FILE``
measures OpenVINO's ``--precision-hint``;
``... tiny --bundle INT8 --backend onnxruntime --limit 0.005 --data DIR --json FILE``
measures another bundle of the same weights.

A precision is allowed where the mean J&F of at least 500 expressions falls by at most ``--limit``;
otherwise the exit code is 1. A few expressions in which another object was chosen dominate that
mean, so its 95 % interval is recorded beside it. It comes from resampling whole videos, because the
expressions of one depend on each other. FILE is written after every video, and the command
continues there.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from rvos_deploy.benchmarks.studies.bundle_parity import MOVED
from rvos_deploy.bundle.folder import MANIFEST, find_bundle
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.datasets import DataSplit, read_mevis
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.evaluation.bundle_masks import evaluate_bundle
from rvos_deploy.files import sha256_file
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.json_file import write_json
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import Mode, StreamSettings

LIMIT = 0.002
"""J&F, 0 to 1, that the mean over expressions may lose by default."""
FEWEST_EXPRESSIONS = 500
"""Fewer expressions decide nothing."""
RESAMPLES = 9999

ByVideo = dict[str, list[dict[str, Any]]]
"""By video, one row for each expression: id, kind, J&F in float32 and in the lower precision."""


def measure_video(
    segmenters: Mapping[str, Segmenter], split: DataSplit, mode: Mode
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Score one video by each segmenter; return a row per expression, and seconds by name."""
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for name, segmenter in segmenters.items():
        started = time.perf_counter()
        evaluation = evaluate_bundle(segmenter, split, settings=StreamSettings(mode=mode))
        seconds[name] = time.perf_counter() - started
        if not rows:
            rows = [{"expression": s.expression, "kind": s.kind} for s in evaluation.scores]
        for row, score in zip(rows, evaluation.scores, strict=True):
            row[name] = score.j_and_f
    return rows, seconds


def summarise(by_video: ByVideo, lower: str) -> dict[str, Any]:
    """Return means, the mean loss with its interval, and how many expressions moved."""
    rows = [row for rows in by_video.values() for row in rows]
    losses = np.array([row["fp32"] - row[lower] for row in rows])
    kinds: dict[str, list[float]] = defaultdict(list)
    for row, loss in zip(rows, losses, strict=True):
        kinds[row["kind"] or "none"].append(float(loss))
    return {
        "expressions": len(rows),
        "videos": len(by_video),
        "j_and_f": {name: float(np.mean([row[name] for row in rows])) for name in ("fp32", lower)},
        "lost": float(losses.mean()),
        "lost_interval_95": interval(by_video, lower),
        "lost_by_kind": {kind: float(np.mean(kinds[kind])) for kind in sorted(kinds)},
        "moved": {
            "worse": int((losses > MOVED).sum()),
            "better": int((losses < -MOVED).sum()),
            "largest_loss": float(losses.max()),
            "largest_gain": float(-losses.min()),
        },
    }


def interval(by_video: ByVideo, lower: str) -> list[float] | None:
    """Return the 95 % bootstrap interval (BCa) of the mean loss; None: fewer than two videos, or no
    two that differ.
    """
    from scipy.stats import bootstrap

    sums = np.array([sum(row["fp32"] - row[lower] for row in rows) for rows in by_video.values()])
    counts = np.array([len(rows) for rows in by_video.values()])
    if len(sums) < 2 or not np.ptp(sums / counts):
        return None

    def mean(
        losses: NDArray[np.float64], sizes: NDArray[np.int64], axis: int = -1
    ) -> NDArray[np.float64]:
        ratio: NDArray[np.float64] = losses.sum(axis=axis) / sizes.sum(axis=axis)
        return ratio

    found = bootstrap(
        (sums, counts), mean, paired=True, n_resamples=RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return [float(found.low), float(found.high)]


def require_allowed(found: Mapping[str, Any], limit: float = LIMIT) -> None:
    """Raise ParityError unless enough expressions lose at most ``limit`` on average."""
    if found["expressions"] < FEWEST_EXPRESSIONS:
        raise ParityError(
            f"{found['expressions']} expressions decide nothing, at least {FEWEST_EXPRESSIONS} are "
            "needed; rvos-deploy make-data sprites --split valid --videos 110 --out DIR"
        )
    if not found["lost"] <= limit:
        raise ParityError(
            f"the lower precision loses {found['lost']:.4f} J&F, at most {limit:g} is allowed; "
            "compute more in float32: for a hint, operators of "
            "rvos_deploy/runtime/backends/openvino/bf16_products.py; for int8, export with a "
            "smaller --maximum-int8-error"
        )


@with_error_lines
def main(
    reference: Annotated[str, typer.Argument(help="Bundle in fp32: folder or packaged name.")],
    data: Annotated[Path, typer.Option(help="Folder of a split in MeViS's layout.")],
    json_file: Annotated[Path, typer.Option("--json", help="Result, also of a stopped run.")],
    hint: Annotated[
        PrecisionHint | None, typer.Option(help="The hint to measure, in openvino.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="The bundle to measure: the same weights in int8 or half.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Of both.")] = "openvino",
    limit: Annotated[float, typer.Option(help="J&F that may be lost, 0 to 1.")] = LIMIT,
    mode: Annotated[Mode, typer.Option(help="As of 'run'.")] = "offline",
    videos: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
) -> None:
    """Compare J&F in float32 with J&F in a lower precision, in pairs of expressions."""
    if (hint is None) == (bundle is None):
        raise InputError("there must be exactly one thing to measure; pass --hint or --bundle")
    split = read_mevis(data)
    folder, other = find_bundle(reference), find_bundle(bundle or reference)
    chosen = f"--hint {hint}" if hint else f"--bundle {bundle}"
    with (
        load(folder, backend=backend) as wide,
        load(other, backend=backend, precision_hint=hint) as narrow,
    ):
        precision = narrow.bundle.precision
        lower = hint or (precision if precision != "fp32" else "measured")
        run = {
            "bundle": reference,
            "manifest_sha256": sha256_file(folder / MANIFEST),
            "measured": chosen,
            "measured_sha256": sha256_file(other / MANIFEST),
            "data_sha256": sha256_file(split.meta),
            "backend": backend,
            "mode": mode,
        }
        by_video, seconds = _continued(json_file, run)
        segmenters = {"fp32": wide, lower: narrow}
        for video in split.videos[:videos]:
            if video.name in by_video or not video.expressions:
                continue
            part = DataSplit(split.meta, (video,))
            by_video[video.name], took = measure_video(segmenters, part, mode)
            for name, value in took.items():
                seconds[name] = seconds.get(name, 0.0) + value
            found = summarise(by_video, lower)
            write_json(
                json_file,
                {
                    "schema": "rvos-deploy/benchmark/lower-precision/1",
                    "command": "python -m rvos_deploy.benchmarks.studies.lower_precision "
                    f"{reference} {chosen} --backend {backend} --data {data} --json {json_file} "
                    f"--limit {limit:g} --mode {mode}",
                    "run": run,
                    "limit": limit,
                    **found,
                    "seconds": seconds,
                    "versions": {**versions(), "backend": narrow.backend.describe()},
                    "machine": machine(),
                    "by_video": by_video,
                },
            )
            typer.echo(f"{video.name}: {_line(found)}", err=True)
    found = summarise(by_video, lower)
    typer.echo(_line(found))
    require_allowed(found, limit)


def _continued(file: Path, run: Mapping[str, str]) -> tuple[ByVideo, dict[str, float]]:
    """Return what an earlier run of the same comparison wrote into its file."""
    if not file.exists():
        return {}, {}
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        if written["run"] == run:
            return written["by_video"], written["seconds"]
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError(f"{file} holds something else; move it, or choose another --json")


def _line(found: Mapping[str, Any]) -> str:
    (_, wide), (lower, narrow) = found["j_and_f"].items()
    low, high = found["lost_interval_95"] or (float("nan"), float("nan"))
    return (
        f"{found['expressions']} expressions, J&F {wide:.4f} in fp32, {narrow:.4f} in {lower}, "
        f"lost {found['lost']:+.5f} (95 %: {low:+.5f} to {high:+.5f}); "
        f"{found['moved']['worse']} worse, {found['moved']['better']} better by more than {MOVED}"
    )


if __name__ == "__main__":
    typer.run(main)
