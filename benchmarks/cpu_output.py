"""Print the outcome of the CPU benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rvos_deploy.benchmarks.cpu_findings import disturbance


def print_targets(record: Mapping[str, Any]) -> None:
    """Print the targets, and under each miss the figures that explain it."""
    from rich.table import Table

    from rvos_deploy.console.output import result_console

    console = result_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("what", "against"):
        table.add_column(title, overflow="fold")
    for title in ("needed", "found"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("by", overflow="fold")
    for row in record["targets"]:
        table.add_row(
            row["what"],
            row["against"],
            row["needed"],
            row.get("found", "-"),
            row["status"],
            row.get("by", ""),
        )
    console.print(table)
    for row in record["targets"]:
        if row["status"] == "missed":
            console.print(f"\nmissed: {row['what']}, against {row['against']}")
            for line in row["profile"]:
                console.print(f"  {line}")
    if (warning := disturbance(record)) is not None:
        console.print(f"\nwarning: {warning}")
    for line in record["refused"]:
        console.print(f"\nrefused: {line}")
    for name, section in record["sections"].items():
        if section["status"] == "failed":
            console.print(f"\nfailed: {name}: {section['reason']}")
