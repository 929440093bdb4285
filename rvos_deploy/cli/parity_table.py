"""Parity results as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def parity_table(checks: Sequence[Mapping[str, Any]]) -> Table:
    """One row a graph, size and output, as manifests and ``verify`` record them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    for title in ("max abs", "tolerance", "max rel", "cosine"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("worst at", no_wrap=True)
    table.add_column("")
    for check in checks:
        verdict = "[green]ok[/]" if check["passed"] else "[bold red]FAILED[/]"
        if "j_and_f" in check:
            found = f"J&F {check['j_and_f']:.4f}"
            table.add_row(check["name"], found, f">= {check['tolerance']}", "", "", "", verdict)
            continue
        table.add_row(
            check["name"],
            f"{check['max_abs']:.1e}",
            f"{check['tolerance']:.0e}",
            f"{check['max_rel']:.1e}",
            f"{check['cosine']:.7f}",
            ",".join(map(str, check["worst_index"])),
            verdict,
        )
    return table
