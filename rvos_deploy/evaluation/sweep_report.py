"""Report a threshold sweep with the shared keys, as JSON and CSV: rows by mode, and the best."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvos_deploy.environment import machine, versions
from rvos_deploy.evaluation.bundle_masks import bundle_settings
from rvos_deploy.evaluation.protocols import protocol_named
from rvos_deploy.evaluation.report import Row, accuracies_and_means
from rvos_deploy.evaluation.threshold_sweep import Sweep
from rvos_deploy.files import write_text
from rvos_deploy.runtime.segmenter import Segmenter

SCHEMA = "rvos-deploy/evaluate-sweep/1"

_COLUMNS = ("mode", "threshold", "j", "f", "j_and_f", "n_acc", "t_acc", "count", "own", "best")


def sweep_report(sweep: Sweep, segmenter: Segmenter) -> Row:
    """Return the report of a sweep, ready for JSON, with J, F and J&F in 0..1.

    ``modes`` holds for each mode its settings, the bundle's ``own`` threshold, the ``best`` one and
    ``rows`` by threshold, which have the keys of ``report``.
    """
    accuracies = protocol_named(sweep.protocol).accuracies
    modes = {}
    for mode, settings in sweep.settings.items():
        rows = [
            {"threshold": value, **accuracies_and_means(scores, accuracies=accuracies)}
            for value, scores in zip(sweep.thresholds, sweep.scores[mode], strict=True)
        ]
        own = segmenter.bundle.threshold(mode)
        modes[mode] = {
            "settings": {**bundle_settings(segmenter, settings), "overlaps": sweep.overlaps},
            "own": own,
            "best": best_row(rows, own)["threshold"],
            "rows": rows,
        }
    videos = [video for video in sweep.split.videos if video.expressions]
    return {
        "schema": SCHEMA,
        "command": "evaluate",
        "protocol": sweep.protocol,
        "data": str(sweep.split.meta),
        "modes": modes,
        "videos": len(videos),
        "frames": sum(len(video.frames) for video in videos),
        "seconds": sweep.seconds,
        "versions": {**versions("pillow", "scipy"), "backend": segmenter.describe_backend()},
        "machine": machine(),
    }


def best_row(rows: Sequence[Row], own: float) -> Row:
    """Return the row of the greatest J&F; of equal rows, the nearest to the bundle's threshold."""
    return max(rows, key=lambda row: (row["j_and_f"], -abs(row["threshold"] - own)))


def write_sweep_csv(path: Path, result: Mapping[str, Any]) -> None:
    """Write a sweep's rows as one table, with one line per mode and threshold.

    ``own`` and ``best`` are 1 at the bundle's own threshold and at the best one. The file is
    complete or absent (see ``files.writing``).

    Raises:
        InputError: the file cannot be written there.
    """
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for mode, found in result["modes"].items():
        for row in found["rows"]:
            marks = {name: int(row["threshold"] == found[name]) for name in ("own", "best")}
            table.writerow({"mode": mode, **row, **marks})
    write_text(path, file.getvalue())
