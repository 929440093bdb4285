"""Examine the installation: ``rvos-deploy doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rvos_deploy.console.options import JsonOption
from rvos_deploy.console.output_files import check_outputs, write_record

if TYPE_CHECKING:
    from rvos_deploy.doctor.outcome import State

MARKS: dict[State, tuple[str, str]] = {
    "passed": ("✓", "ok"),
    "failed": ("✗", "FAILED"),
    "absent": ("⊘", "-"),
}
"""The mark of each state, and one for terminals without Unicode."""


def doctor(
    bundle: Annotated[
        str,
        typer.Option("--bundle", "-b", metavar="BUNDLE", help="Bundle to examine."),
    ] = "tiny",
    json: JsonOption = None,
) -> None:
    """Check what is installed, what is missing, and name the command that fixes it.

    ✓ works, ✗ does not work, ⊘ is not installed or does not concern this
    machine. All checks run; the exit code is 1 if one of them failed.
    """
    from rvos_deploy.console.output import counted, step_progress
    from rvos_deploy.doctor.examination import all_checks, examine
    from rvos_deploy.environment import versions

    check_outputs([json])
    checks = all_checks(bundle)
    width = max(len(check.title) for check in checks)
    rows = []
    with step_progress() as progress:
        progress("checking")
        for number, (check, outcome) in enumerate(examine(checks), start=1):
            typer.echo(f"{number:2} {_mark(outcome.state)} {check.title:{width}}  {outcome.found}")
            if outcome.fix:
                typer.echo(f"{'':{width + 5}}  fix: {outcome.fix}")
            rows.append({"check": check.title, **vars(outcome)})
    count = {state: sum(row["state"] == state for row in rows) for state in MARKS}
    typer.echo(
        f"{counted(count['passed'], 'check')} passed, {count['failed']} failed, {count['absent']} "
        "not installed or not for this machine"
    )
    write_record(json, "doctor", {"bundle": bundle, "checks": rows}, versions())
    if count["failed"]:
        raise typer.Exit(1)


def _mark(state: State) -> str:
    import sys

    mark, plain = MARKS[state]
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return mark
