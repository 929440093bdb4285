"""Parity results as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

_FULL_WIDTH = 106
"""Columns of the whole table; a narrower one keeps what was found, the tolerance and the result."""


def parity_table(checks: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Make a table with a row for each check, as manifests and ``verify`` record them.

    Without room for them in ``width`` columns, max rel, cosine and worst index are left out.
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
    """List the notes of the checks, a line each; checks with the same note share a line."""
    found: dict[str, list[str]] = {}
    for check in checks:
        if note := check.get("note"):
            found.setdefault(note, []).append(check["name"])
    return [
        f"note: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}"
        for note, names in found.items()
    ]


def _decisive(check: Mapping[str, Any]) -> tuple[str, str]:
    """Give what was found, and what is allowed."""
    if "j_and_f" in check:
        return f"J&F {check['j_and_f']:.4f}", f">= {check['tolerance']}"
    return f"{check['max_abs']:.1e}", f"{check['tolerance']:.0e}"


def _details(check: Mapping[str, Any]) -> tuple[str, str, str]:
    if "j_and_f" in check:
        return "", "", ""
    worst = ",".join(map(str, check["worst_index"]))
    return f"{check['max_rel']:.1e}", f"{check['cosine']:.7f}", worst
