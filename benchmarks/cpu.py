"""Measure every CPU back end beside eager PyTorch, and compare the figures with the targets.

``python -m rvos_deploy.benchmarks.cpu --out DIR``

The command measures the stages of a frame, whole streams, whole jobs, fresh processes, and
deformable attention alone. Contenders run in turn in one process, and masks are compared before a
speed is reported. It writes ``DIR/cpu.json`` after every section and continues there after a stop;
``DIR/cpu.html`` shows everything. Exit code 1: a target was missed, or a section failed.

It needs the extras ``cpu``, ``openvino`` and ``benchmark``, and ``export`` for PyTorch; a contender
that is not installed is left out.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.errors import InputError

if TYPE_CHECKING:
    from rvos_deploy.benchmarks.cpu_models import Bundles
    from rvos_deploy.benchmarks.cpu_sections import Amounts

CHECK_FAILED = 1
NAME_AND_PATH = "NAME=PATH"


@with_error_lines
def main(
    out: Annotated[Path, typer.Option("--out", help="Folder for cpu.json and cpu.html.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="GROUP",
            help="Measure this group only: processes, operator, a model (tiny, base, "
            "onlinerefer-r50, large), job or sweeps; may be repeated.",
        ),
    ] = None,
    contender: Annotated[
        list[str] | None,
        typer.Option(
            "--contender",
            metavar="NAME",
            help="Measure this back end only; may be repeated.",
        ),
    ] = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            "--bundle",
            metavar=NAME_AND_PATH,
            help="Use this bundle for a model. Default: the packaged one, or one that is exported "
            "once with random weights, and kept in the cache.",
        ),
    ] = None,
    int8: Annotated[
        list[str] | None,
        typer.Option("--int8", metavar=NAME_AND_PATH, help="Bundle of a model with int8 weights."),
    ] = None,
    accuracy: Annotated[
        list[str] | None,
        typer.Option(
            "--accuracy",
            metavar=NAME_AND_PATH,
            help="J&F that a contender loses, for all models: a file of studies.bundle_parity or "
            "studies.lower_precision. Without it, a speed in bf16 or int8 counts only if the masks "
            "here agree with those of fp32.",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Folder of exported bundles.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each contender. Default: one per usable core.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=60, help="Frames of the long stream. Default: 1500.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few frames: shows that it works, not how fast.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of other options.")
    ] = False,
) -> None:
    """Measure every CPU back end beside eager PyTorch, and compare with the targets."""
    from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS
    from rvos_deploy.benchmarks.cpu_models import MODELS, Bundles
    from rvos_deploy.benchmarks.cpu_record import named_paths, read_accuracy
    from rvos_deploy.benchmarks.cpu_sections import FULL, QUICK
    from rvos_deploy.cache_folder import cache_folder
    from rvos_deploy.console.extras import let_threads_sleep
    from rvos_deploy.environment import usable_cores

    let_threads_sleep()  # PyTorch must be measured at its best
    amounts = QUICK if quick else FULL
    _run(
        out,
        Request(
            tuple(sorted(set(only or ()))),
            tuple(sorted(set(contender or ()))),
            Bundles(
                cache or cache_folder() / "benchmarks",
                named_paths("--bundle", bundle, MODELS),
                named_paths("--int8", int8, MODELS),
            ),
            read_accuracy(named_paths("--accuracy", accuracy, CONTENDERS)),
            threads or usable_cores(),
            amounts if length is None else replace(amounts, length=length),
            quick,
        ),
        overwrite=overwrite,
    )


@dataclass(frozen=True)
class Request:
    """Hold the options of the command."""

    only: tuple[str, ...]
    contenders: tuple[str, ...]
    bundles: Bundles
    accuracy: dict[str, Any]
    threads: int
    amounts: Amounts
    quick: bool

    def as_dict(self) -> dict[str, Any]:
        """Return what a run must share with an earlier one to continue it."""
        from rvos_deploy.environment import versions

        return {
            "only": list(self.only),
            "contenders": list(self.contenders),
            "bundles": {name: str(path) for name, path in self.bundles.given.items()},
            "int8": {name: str(path) for name, path in self.bundles.int8.items()},
            "threads": self.threads,
            "length": self.amounts.length,
            "quick": self.quick,
            "versions": versions("torch", "onnxruntime", "openvino"),
        }


def _run(out: Path, request: Request, *, overwrite: bool) -> None:
    """Measure, write the results, and print the targets."""
    from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS, choose_contenders
    from rvos_deploy.benchmarks.cpu_sections import GROUPS, Setup, plan
    from rvos_deploy.console.extras import needs_extra
    from rvos_deploy.files import holding

    if unknown := [name for name in request.only if name not in GROUPS]:
        raise InputError(f"--only '{unknown[0]}' is unknown; choose among {', '.join(GROUPS)}")
    chosen = choose_contenders(request.contenders)
    with needs_extra("the report", "benchmark"):
        from rvos_deploy.benchmarks.cpu_output import print_targets
        from rvos_deploy.benchmarks.cpu_record import HTML_FILE, finish, open_record, run_sections
    record = open_record(out, request.as_dict(), overwrite=overwrite)
    record |= {"command": _command(), "threads": request.threads, "accuracy": request.accuracy}
    record["contenders"] = {
        name: {"title": CONTENDERS[name].title, "missing": reason}
        for name, reason in chosen.items()
    }
    names = tuple(name for name, reason in chosen.items() if reason is None)
    sections = {
        name: section
        for name, section in plan(request.amounts).items()
        if not request.only or section.group in request.only
    }
    with holding(out, "measuring into"), tempfile.TemporaryDirectory(prefix="rvos-") as folder:
        setup = Setup(
            request.bundles, names, request.threads, request.amounts, Path(folder), _progress
        )
        run_sections(out, record, sections, setup)
        finish(out, record)
    print_targets(record)
    typer.echo(f"{out / HTML_FILE} shows everything")
    if not record["passed"]:
        raise typer.Exit(CHECK_FAILED)


def _command() -> str:
    from rvos_deploy.redaction import redact_command

    return f"python -m rvos_deploy.benchmarks.cpu {redact_command(sys.argv[1:])}".strip()


def _progress(step: str) -> None:
    typer.echo(step, err=True)


if __name__ == "__main__":
    typer.run(main)
