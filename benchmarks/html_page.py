"""Write a benchmark's record as one self-contained HTML page, light and dark."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #666; --line: #d8d8d8;
  --bad: #a8321f; --band: #f5f5f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181a; --soft: #a0a0a0;
  --line: #3a3d40; --bad: #ef8d7c; --band: #1e2124; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p, li { max-width: 48rem; } .soft { color: var(--soft); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .75rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; } th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; white-space: normal; }
code { background: var(--band); padding: .1rem .3rem; }
"""


def page(title: str, style: str, parts: Iterable[str]) -> str:
    """Return the page.

    Args:
        title: plain text.
        style: rules that this page adds to the common ones.
        parts: the body's parts; they are HTML already.
    """
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}{style}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: Collection[str],
    *,
    ragged: bool = False,
) -> str:
    """Return a table.

    Args:
        titles: plain text, one a column.
        rows: the cells are HTML already.
        words: titles of the columns of text, which are aligned left.
        ragged: a row may end early.
    """
    kinds = [" class=text" if title in words else "" for title in titles]
    head = "".join(f"<th{k}>{escape(t)}</th>" for k, t in zip(kinds, titles, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(kinds, row, strict=not ragged))}</tr>"
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"
