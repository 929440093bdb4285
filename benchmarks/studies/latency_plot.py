"""Plot the latency of a frame by stage, from files of ``rvos-deploy benchmark --json``.

``python -m rvos_deploy.benchmarks.studies.latency_plot FILE... --out PNG`` needs matplotlib.
Each file gets one bar; a file of ``--compare pytorch`` gets a second bar for the eager reference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.errors import InputError

STAGES = ("decode", "resize", "backbone", "frame_decoder", "video_decoder", "mask_head")
"""Stages drawn by name. The others take under a millisecond each, and are drawn together."""
OTHER = "other"


def median_milliseconds(result: dict[str, Any]) -> dict[str, float]:
    """Return the median of each stage in milliseconds; small stages are summed."""
    medians = {name: stage["milliseconds"]["p50"] for name, stage in result["stages"].items()}
    other = sum(value for name, value in medians.items() if name not in STAGES)
    return {**{name: medians.get(name, 0.0) for name in STAGES}, OTHER: other}


def read_results(files: list[Path]) -> list[dict[str, Any]]:
    """Read results of ``benchmark``. Raises InputError: a file is not a result."""
    results = []
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            median_milliseconds(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is not a result of a benchmark ({error}); write one with 'rvos-deploy "
                "benchmark --json FILE'"
            ) from error
        results.append(result)
    return results


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Draw one stacked bar per result, and one per reference."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("matplotlib is not installed; pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = sum(2 if result.get("comparison") else 1 for result in results)
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.55 * rows), layout="constrained")
    colours = {name: f"C{index}" for index, name in enumerate((*STAGES, OTHER))}
    labels: list[str] = []
    for result in results:
        count = result["expressions"]
        labels.append(
            f"{count} expression{'s' * (count > 1)}: {result['versions']['backend']['name']}"
        )
        left = 0.0
        for stage, value in median_milliseconds(result).items():
            axes.barh(labels[-1], value, left=left, color=colours[stage])
            left += value
        axes.text(left, len(labels) - 1, f" {left:.0f} ms", va="center")
        if comparison := result.get("comparison"):
            labels.append(
                f"{count} expression{'s' * (count > 1)}: {comparison['reference']['name']}"
            )
            theirs = comparison["theirs"]["milliseconds"]["p50"]
            axes.barh(labels[-1], theirs, color="0.75")
            axes.text(theirs, len(labels) - 1, f" {theirs:.0f} ms", va="center")
    handles = [Patch(color=colours[s], label=s.replace("_", " ")) for s in (*STAGES, OTHER)]
    figure.legend(handles=handles, loc="outside upper center", ncols=7, frameon=False)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per frame (median)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)


@with_error_lines
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Of benchmark --json.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="The plot.")],
) -> None:
    """Plot milliseconds per frame by stage."""
    draw(read_results(files), out)


if __name__ == "__main__":
    typer.run(main)
