"""Configure Sphinx: ``.ci/docs`` builds the site, and any warning fails it."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "rvos-deploy"
author = "The rvos-deploy developers"
copyright = "The rvos-deploy developers, Apache-2.0"
version = release = installed_version("rvos-deploy")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"rvos-deploy {version}"
html_static_path: list[str] = []
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"
# Types of other packages, and names that users do not need, have no page to lead to.
nitpick_ignore_regex = [
    ("py:class", r"(numpy|collections|pathlib|fractions|sv|av|os|typing)\..*"),
    ("py:class", r"rvos_deploy\.[a-z_]+\..*"),
    ("py:(meth|func|attr)", r"rvos_deploy\.[a-z_]+\..*"),
]

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/results": "results.md",
    "benchmarks/results/README.md": "results.md",
    "engines/README.md": "engines.md",
    "rvos_deploy/runtime/backends/README.md": "backends.md",
}
"""Pages of the site for Markdown that lies elsewhere in the repository."""
_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]*)(#[^)]*)?\)")


def to_site(text: str, folder: Path) -> str:
    """Return Markdown whose links to the repository's files lead to pages of the site, or nowhere.

    ``folder``: where the Markdown lies. A file that is no page becomes its path in code type.
    """

    def changed(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (folder / target).resolve()
        try:
            inside = path.relative_to(ROOT).as_posix()
        except ValueError:
            return match[0]
        if label.startswith("!"):
            return f"{label}({os.path.relpath(path, ROOT / 'docs')})"
        if inside in PAGES:
            return f"{label}({PAGES[inside]}{anchor})"
        if inside.startswith("docs/"):
            return f"{label}({inside.removeprefix('docs/')}{anchor})"
        shown = label[1:-1]
        return f"`{inside}`" if shown in (inside, Path(inside).name) else f"{shown} (`{inside}`)"

    return _LINK.sub(changed, text)


def _on_source(app: Any, name: str, source: list[str]) -> None:
    source[0] = to_site(source[0], ROOT / "docs")


def _on_include(app: Any, relative: Path, parent: str, content: list[str]) -> None:
    path = (ROOT / "docs" / relative).resolve()
    content[0] = to_site(content[0], path.parent)


def _write_commands(app: Any) -> None:
    """Write the reference of the command line from the commands themselves."""
    import typer.main
    from typer.cli import get_docs_for_click

    from rvos_deploy.cli.commands import app as commands

    click_command = typer.main.get_command(commands)
    for command in click_command.commands.values():  # type: ignore[attr-defined]
        command.short_help = (command.help or "").partition("\n")[0]  # otherwise cut at 45 letters
    context = click_command.make_context("rvos-deploy", [], resilient_parsing=True)
    text = get_docs_for_click(obj=click_command, ctx=context, name="rvos-deploy", title="Commands")
    (ROOT / "docs" / "commands.md").write_text(text, encoding="utf-8")


def _on_docstring(
    app: Any, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking the words before a property's first colon for its type."""
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(": ", " \u2014 ")


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("autodoc-process-docstring", _on_docstring, priority=400)  # before napoleon
    app.connect("builder-inited", _write_commands)
    app.connect("source-read", _on_source)
    app.connect("include-read", _on_include)
