"""Print each error, warning and stop in one line."""

from __future__ import annotations

import functools
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec

from rvos_deploy import stopping
from rvos_deploy.errors import RvosError
from rvos_deploy.redaction import redact_text

Parameters = ParamSpec("Parameters")

WRONG_USE = 2
# Seconds by which a signal to the whole process group may reach this process after its children.
_GROUP = 0.2


def run_with_error_lines(call: Callable[[], int], *, debug: bool = False) -> int:
    """Run ``call`` and return its exit code; print an RvosError or a stop as one line.

    ``debug`` also prints the traceback. A warning is one line. Unexpected errors are raised.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return call()
        except stopping.Stopped as stop:
            return _stopped(stop)
        except KeyboardInterrupt:
            stopping.print_last_line("error: interrupted")
            return stopping.INTERRUPTED
        except Exception as error:
            message, code = _explain(error)
            # A library may have replaced the stop by an error of its own, and a signal to the whole
            # process group may have ended a worker process first.
            expected = message is not None and not stopping.was_raised()
            cause = None if expected else stopping.requested(patience=_GROUP)
            if cause is not None:
                return _stopped(cause)
            if message is None:
                raise
            if debug:
                print(redact_text(traceback.format_exc()), end="", file=sys.stderr)
            _print_line("error", message)
            return code


def with_error_lines(main: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Wrap a command of ``python -m ...``, so its errors and stops are one line, as in the CLI."""

    @functools.wraps(main)
    def command(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        import typer

        def call() -> int:
            try:
                main(*args, **kwargs)
            except typer.Exit as exit:
                return exit.exit_code
            return 0

        if code := run_with_error_lines(call):
            raise typer.Exit(code)

    return command


def _stopped(stop: stopping.Stopped) -> int:
    stopping.print_last_line(stop.line)
    return int(stop.code or 0)


def _explain(error: Exception) -> tuple[str | None, int]:
    """Return the line to print and the exit code; the line of an unexpected error is None."""
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
    # Typer's usage errors have this method; their base class has moved between versions.
    if hasattr(error, "format_message"):
        text = error.format_message().strip().rstrip(".").replace("Value error, ", "")
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "rvos-deploy"
        advice = f"see '{command} --help'"
        if (meant := _meant_expression(error, context)) is not None:
            advice = f"if it is an expression, put a space before it: ' {meant}'; {advice}"
        return f"{text[:1].lower()}{text[1:]}; {advice}", WRONG_USE
    return None, 1


def _meant_expression(error: Exception, context: Any) -> str | None:
    """Return the argument that was read as an option and may be an expression, else None."""
    option = getattr(error, "option_name", None)
    if option is None or context is None:
        return None
    if "expressions" not in {parameter.name for parameter in context.command.params}:
        return None
    # Of "-the dog" the parser names only "-t".
    argument = next((given for given in sys.argv if given.startswith(option)), option)
    return argument if " " in argument or not argument.startswith("--") else None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _print_line("warning", message)


def _print_line(kind: str, message: object) -> None:
    with suppress(OSError):  # the terminal may be gone
        line = f"{kind}: {redact_text(' '.join(str(message).split()))}"
        print(line, file=sys.stderr, flush=True)
