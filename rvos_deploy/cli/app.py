"""The Typer app: commands are found here, each in a file of its own."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from rvos_deploy.cli import benchmark as benchmark_command
from rvos_deploy.cli import export, inspect, make_data, run, verify
from rvos_deploy.errors import RvosError

INTERRUPTED = 130

app = typer.Typer(
    name="rvos-deploy",
    help="Referring video object segmentation, from PyTorch to production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"rvos-deploy {version('rvos-deploy')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("inspect")(inspect.inspect)
app.command("benchmark")(benchmark_command.benchmark)
app.command("make-data")(make_data.make_data)


def main() -> None:
    """Run the command line; every error that we raise becomes one line and an exit code."""
    debug = "--debug" in sys.argv
    if debug:
        # Wherever it stands: it belongs to the program, not to one command.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    warnings.showwarning = _show_warning
    try:
        app()
    except RvosError as error:
        if debug:
            raise
        _say("error", error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("error", "interrupted")
        sys.exit(INTERRUPTED)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say("warning", message)


def _say(kind: str, message: object) -> None:
    typer.echo(f"{kind}: {' '.join(str(message).split())}", err=True)
