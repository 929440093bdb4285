"""Define the option --save, which chooses the outputs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import typer

from rvos_deploy.console.options import OUTPUT_PANEL
from rvos_deploy.errors import InputError
from rvos_deploy.video.sinks.registry import (
    DEFAULT_SINKS,
    SINKS,
    parse_choices,
    writes_to_standard_output,
)

SaveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--save",
        metavar="NAME[=TARGET],...",
        rich_help_panel=OUTPUT_PANEL,
        help=f"What to write; may be repeated. Default: {','.join(DEFAULT_SINKS)}. "
        + " ".join(f"{kind.usage(name)}: {kind.summary}." for name, kind in SINKS.items())
        + " docs/running.md describes them.",
    ),
]


class Saved(NamedTuple):
    """Hold the chosen outputs.

    Args:
        sinks: each ``NAME`` or ``NAME=TARGET``.
        on_standard_output: whether one of them owns standard output, so that lines for people go to
            standard error.
    """

    sinks: tuple[str, ...]
    on_standard_output: bool


def parse_save(given: Sequence[str] | None) -> Saved:
    """Return the outputs that ``--save`` names.

    Raises:
        InputError: a name is missing, unknown or given twice, or a target is not possible.
    """
    if given is None:
        return Saved(DEFAULT_SINKS, on_standard_output=False)
    names = tuple(part.strip() for text in given for part in text.split(","))
    if "" in names:
        raise InputError(
            "--save names nothing between two commas, or nothing at all; choose from "
            f"{', '.join(SINKS)}"
        )
    return Saved(names, writes_to_standard_output(parse_choices(names)))
