"""Hold what all sections of the GPU benchmark's page share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rvos_deploy.benchmarks import html_page
from rvos_deploy.benchmarks.gpu_clocks import STEADY

NOISY = 0.05
"""A larger spread of the rounds is marked."""

_WORDS = frozenset(
    (
        "status",
        "what",
        "needs",
        "what, or why not",
        "graph",
        "kernel",
        "parity",
        "G by operator",
        "roofline / p50",
        "stage",
        "clock during the rounds",
        "not run",
        "why",
    )
)
"""Columns of text, which are aligned left."""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table; a row may end early, and its last cell then says why."""
    return html_page.table(titles, rows, _WORDS, ragged=True)


def result(record: Mapping[str, Any], step: str) -> Any:
    """Return the result of a step, or None."""
    return record["steps"].get(step, {}).get("result")


def opened(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the back ends that were opened, by name."""
    return {
        name: step["result"]
        for name, step in record["steps"].items()
        if isinstance(step.get("result"), dict) and "parity" in step["result"]
    }


def contenders(record: Mapping[str, Any], step: str) -> Mapping[str, Any]:
    """Return what a step measured in turn, by back end."""
    found: Mapping[str, Any] = (result(record, step) or {}).get("contenders", {})
    return found


def missing(rows: Mapping[str, str]) -> str:
    """Render a table of what could not run and why, or nothing."""
    cells = [(escape(name), escape(reason)) for name, reason in rows.items()]
    return table(("not run", "why"), cells) if cells else ""


def measured_roofline(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the rooflines by measured rates; None where the rates were not measured."""
    if result(record, "rates") is None:
        return None
    first: Mapping[str, Any] = record["floors"][0]
    return first if "graphs" in first else None


def number(part: Mapping[str, Any], key: str, digits: int) -> str:
    """Format a figure of a part that may not have run."""
    return f"{part[key]:.{digits}f}" if key in part else "not run"


def spread(figure: Mapping[str, Any]) -> str:
    """Format the spread of the rounds; a large one is marked."""
    text = f"{figure['spread']:.1%}"
    return text if figure["spread"] <= NOISY else f"<span class=bad>{text}</span>"


def clocks(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Describe the SM clock, power and throttling of all rounds; a clock that moved is marked."""
    read = [one for one in rounds if "sm_mhz" in one]
    if not read:
        reasons = {one["reason"] for one in rounds if "reason" in one}
        return escape("; ".join(sorted(reasons)) or "not read")
    low = min(one["sm_mhz"]["min"] for one in read)
    high = max(one["sm_mhz"]["max"] for one in read)
    watts = [one["watts"]["max"] for one in read if one["watts"]]
    throttled = sorted({reason for one in read for reason in one["throttled"]})
    text = f"{low} MHz" if low == high else f"{low} to {high} MHz"
    moved = high - low > STEADY * high
    words = [f"<span class=bad>{text}</span>" if moved else text]
    words += [f"up to {max(watts):.0f} W"] if watts else []
    words += [escape(reason) for reason in throttled]
    return ", ".join(words)
