"""The Typer app: commands are found here, each in a file of its own."""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rvos_deploy.cli import benchmark as benchmark_command
from rvos_deploy.cli import (
    build_engine,
    demo,
    evaluate,
    export,
    inspect,
    make_data,
    pretrain_clip,
    run,
    train,
    verify,
)
from rvos_deploy.errors import RvosError

INTERRUPTED = 130
WRONG_USE = 2


class _Commands(TyperGroup):
    """Says so when it is interrupted: Typer would leave in silence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("error", "interrupted")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="rvos-deploy",
    help="Referring video object segmentation, from PyTorch to production.",
    cls=_Commands,
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


app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("export")(export.export)
app.command("build-engine")(build_engine.build_engine)
app.command("verify")(verify.verify)
app.command("inspect")(inspect.inspect)
app.command("evaluate")(evaluate.evaluate)
app.command("benchmark")(benchmark_command.benchmark)
app.command("make-data")(make_data.make_data)
app.command("pretrain-clip")(pretrain_clip.pretrain_clip)
app.command("train")(train.train)


def main() -> None:
    """Run the command line; every error that we raise becomes one line and an exit code."""
    debug = "--debug" in sys.argv
    if debug:
        # Wherever it stands: it belongs to the program, not to one command.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    warnings.showwarning = _show_warning
    try:
        code = app(prog_name="rvos-deploy", standalone_mode=False)
    except Exception as error:
        message, code = _explain(error)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        _say("error", message)
    sys.exit(code)


def _explain(error: Exception) -> tuple[str | None, int]:
    """One line for people, and the exit code; None for what nobody foresaw."""
    if isinstance(error, RvosError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror or error}; check the path and free space", WRONG_USE
    if isinstance(error, MemoryError):
        found = f" ({error})" if str(error) else ""
        return (
            f"memory is short{found}; use a smaller --size, fewer expressions, fewer frames or "
            "--mode online, or a machine with more",
            WRONG_USE,
        )
    # Typer's own errors of usage: their base class has moved between its versions.
    if hasattr(error, "format_message"):
        text = error.format_message().strip().rstrip(".").replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "rvos-deploy"
        return f"{text[:1].lower()}{text[1:]}; see '{command} --help'", WRONG_USE
    return None, 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say("warning", message)


def _say(kind: str, message: object) -> None:
    typer.echo(f"{kind}: {' '.join(str(message).split())}", err=True)
