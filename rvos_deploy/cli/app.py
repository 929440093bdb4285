"""Start the command line. This module imports little, so a stop signal is handled early."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rvos_deploy import stopping


def main() -> None:
    """Run the command line and end the process."""
    stopping.install()
    code = run_command_line()
    if code:
        _drop_unwritable_output()
    from rvos_deploy.iterator_thread import any_stuck
    from rvos_deploy.worker_threads import any_running

    if any_stuck() or any_running():
        # A thread that hangs in C (FFmpeg waits for a source) may return during the interpreter's
        # shutdown and crash it; another one (a graph is opened) would delay a stop. All files are
        # closed by now.
        for stream in _streams():
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _drop_unwritable_output() -> None:
    """Redirect output that cannot be written (a closed terminal) to the null device.

    Otherwise the interpreter's last flush fails, and replaces the command's exit code by 120.
    """
    for stream in _streams():
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _streams() -> list[TextIO]:
    """Return standard output and error, but none that the caller has closed."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def run_command_line() -> int:
    """Run the command in ``sys.argv`` and return its exit code; print an RvosError as one line."""
    debug = "--debug" in sys.argv
    if debug:
        # --debug belongs to the program, not to one command, and may stand anywhere.
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    from rvos_deploy.console.error_lines import run_with_error_lines

    return run_with_error_lines(_call, debug=debug)


def _call() -> int:
    from rvos_deploy.cli.commands import app

    return app(prog_name="rvos-deploy", standalone_mode=False) or 0
