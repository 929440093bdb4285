"""Write the README's table and plot of speeds on a CPU from the committed result.

``python -m rvos_deploy.benchmarks.studies.readme_table`` rewrites both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS, REFERENCE
from rvos_deploy.benchmarks.cpu_findings import counts, disturbance, median
from rvos_deploy.benchmarks.cpu_plots import as_png, stage_bars
from rvos_deploy.benchmarks.cpu_report import main_streams
from rvos_deploy.benchmarks.studies.readme_part import with_part
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.files import replacing, sha256_file, write_text

ROOT = Path(__file__).parents[2]
RESULT, PLOT, README = "benchmarks/results/cpu.json", "benchmarks/results/cpu.png", "README.md"
BEGIN, END = "<!-- begin: benchmarks/results/cpu.json -->", "<!-- end: cpu.json -->"


def readme_table(record: Mapping[str, Any]) -> str:
    """Return the Markdown table of a record: one row a stream, one column a back end.

    A cell holds the median milliseconds of a frame, and how many times PyTorch's speed that is. It
    is in brackets where the masks are not proved to be good enough for the speed to count.
    """
    results = {
        name: section["result"]
        for name, section in record["sections"].items()
        if section["status"] == "done"
    }
    results["accuracy"] = record["accuracy"]
    streams = main_streams(results)
    names = [
        name
        for name in CONTENDERS
        if any("end_to_end" in one["contenders"].get(name, {}) for one in streams.values())
    ]
    lines = [
        "| milliseconds a frame | " + " | ".join(CONTENDERS[name].title for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for title, stream in streams.items():
        cells = [_cell(name, stream["contenders"], results) for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    if (warning := disturbance(record)) is not None:
        lines += ["", f"**Preliminary.** {warning}"]
    return "\n".join(lines)


def _cell(name: str, contenders: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    one = contenders.get(name, {})
    if "end_to_end" not in one:
        return ""
    time = median(one)
    shown = f"{time:,.0f}" if time >= 100 else f"{time:.1f}"
    if name == REFERENCE:
        return shown
    ratio = f"{median(contenders[REFERENCE]) / time:.2f}x" if REFERENCE in contenders else ""
    text = f"{shown} ({ratio})" if ratio else shown
    return text if counts(name, one, results) else f"[{text}]"


def with_table(readme: str, record: Mapping[str, Any]) -> str:
    """Return a README whose part between the two comments is the record's table.

    Raises:
        InputError: the comments are missing.
    """
    return with_part(readme, BEGIN, END, readme_table(record), str(README))


def plot(record: Mapping[str, Any], source: Path, file: Path) -> None:
    """Draw the stages of the record's main streams, with the hash of its file in the metadata."""
    results = {
        name: section["result"]
        for name, section in record["sections"].items()
        if section["status"] == "done"
    }
    draw, height = stage_bars(main_streams(results))
    with replacing(file) as temporary:
        as_png(draw, height, temporary, sha256_file(source))


@with_error_lines
def main() -> None:
    """Rewrite the README's table and plot."""
    import json

    record = json.loads((ROOT / RESULT).read_text(encoding="utf-8"))
    text = (ROOT / README).read_text(encoding="utf-8")
    write_text(ROOT / README, with_table(text, record))
    plot(record, ROOT / RESULT, ROOT / PLOT)


if __name__ == "__main__":
    typer.run(main)
