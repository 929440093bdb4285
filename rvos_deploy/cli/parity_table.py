"""Make a table of parity results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

_FULL_WIDTH = 106
"""Columns of the whole table; a narrower table keeps the difference, tolerance and result."""


def parity_table(checks: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Make a table with a row for each check, in the form of manifests and ``verify``.

    If ``width`` columns are too few, max rel, cosine and worst index are left out.
    """
    full = width >= _FULL_WIDTH
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    for title in ("max abs", "tolerance", *(("max rel", "cosine", "worst at") if full else ())):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for check in checks:
        details = _details(check) if full else ()
        result = "[green]ok[/]" if check["passed"] else "[bold red]FAILED[/]"
        table.add_row(escape(check["name"]), *_decisive(check), *details, result)
    return table


def notes(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per note of the checks; checks with the same note share a line."""
    found: dict[str, list[str]] = {}
    for check in checks:
        if note := check.get("note"):
            found.setdefault(note, []).append(check["name"])
    return [
        f"note: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}"
        for note, names in found.items()
    ]


def _decisive(check: Mapping[str, Any]) -> tuple[str, str]:
    """Return the measured value, and the allowed value."""
    if "j_and_f" in check:
        return f"J&F {check['j_and_f']:.4f}", f">= {check['tolerance']}"
    return f"{check['max_abs']:.1e}", f"{check['tolerance']:.0e}"


def _details(check: Mapping[str, Any]) -> tuple[str, str, str]:
    if "j_and_f" in check:
        return "", "", ""
    worst = ",".join(map(str, check["worst_index"]))
    return f"{check['max_rel']:.1e}", f"{check['cosine']:.7f}", worst
