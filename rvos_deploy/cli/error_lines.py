"""Errors in one line, for commands that are run by themselves (``python -m ...``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from rvos_deploy.errors import RvosError
from rvos_deploy.redaction import redact_text

Parameters = ParamSpec("Parameters")


def one_line_errors(main: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """The same command, whose errors of ours are one line and an exit code, as the CLI's."""

    @functools.wraps(main)
    def command(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            main(*args, **kwargs)
        except RvosError as error:
            typer.echo(f"error: {redact_text(str(error))}", err=True)
            raise typer.Exit(error.exit_code) from error

    return command
