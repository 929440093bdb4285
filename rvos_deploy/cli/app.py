"""The entry point of the command line. Imports little, so that a stop is answered early."""

from __future__ import annotations

import os
import sys

from rvos_deploy import stopping


def main() -> None:
    """Run the command line and end the process."""
    stopping.install()
    code = run_command_line()
    if code:
        _drop_unwritable_output()
    from rvos_deploy.iterator_thread import any_stuck

    if any_stuck():
        # A thread that hangs in C (FFmpeg waits for a source) may return while the interpreter
        # shuts down, and crash it. All files are closed by now.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _drop_unwritable_output() -> None:
    """Point output that cannot be written (a closed terminal) to the null device: the interpreter
    would flush it at its end, and exit with 120 instead of the command's own code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def run_command_line() -> int:
    """Run the command in ``sys.argv`` and give its exit code; an RvosError becomes one line."""
    debug = "--debug" in sys.argv
    if debug:
        # --debug may stand anywhere: it belongs to the program, not to one command.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    from rvos_deploy.console.error_lines import run_with_error_lines

    return run_with_error_lines(_call, debug=debug)


def _call() -> int:
    from rvos_deploy.cli.commands import app

    return app(prog_name="rvos-deploy", standalone_mode=False) or 0
