"""Run every measurement on a GPU in one command, beside the roofline of the GPU.

``python -m rvos_deploy.benchmarks.gpu --out DIR [--bundle BUNDLE]``

The command checks the machine, measures the GPU's rates, runs the ``gpu`` tests, and builds all
engines with their parity checks. Then it times kernels, and opens TensorRT, TensorRT-RTX, ONNX
Runtime CUDA, eager PyTorch and torch.compile, which run the whole stream, every graph and a video
in turn, ``--rounds`` times. Every step rewrites ``DIR/gpu.json`` and ``DIR/gpu.html``. A step that
lacks something is recorded as not run, with the reason. Engines are installed in the bundle.

The report shows the spread of the rounds, and the SM clock, power and throttling during them. Lock
the clock before, or a warm GPU runs slower in later rounds (the command needs root):

``sudo nvidia-smi -i UUID -lgc MHZ``, and ``-rgc`` to undo; ``nvidia-smi -q -d SUPPORTED_CLOCKS``
lists the frequencies, ``nvidia-smi -L`` the UUIDs. A frequency that the card holds at its power
limit is right: the report says when it did not.

The first GPU that CUDA shows is measured; ``CUDA_VISIBLE_DEVICES=UUID`` chooses another one.

``pip install -e '.[gpu-benchmark]'`` in a fresh environment brings what every step needs. Not the
development extra: its onnxruntime shadows onnxruntime-gpu.

``--dry-run`` prints the plan, and the rooflines by published rates; it works on any machine.

NOT RUN on a GPU: the development machine has none. The tests run the dry run, the counting, the
guards of the steps and the report.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.progress import StepProgress

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.benchmarks.gpu_plan import Request

JSON_FILE, HTML_FILE = "gpu.json", "gpu.html"
CHECK_FAILED = 1


def run_benchmark(
    request: Request, record: dict[str, Any], progress: StepProgress
) -> dict[str, Any]:
    """Run every step, and write the record after each one. NOT RUN.

    Args:
        request: what to measure; ``request.out`` is a folder.
        record: is extended step by step.
        progress: is told each step and its outcome.
    """
    from rvos_deploy.benchmarks.gpu_steps import STEPS, Run, compare, guarded, passed

    assert request.out is not None
    with (
        tempfile.TemporaryDirectory(prefix="rvos-deploy-") as folder,
        closing(Run(request, Path(folder), record)) as run,
    ):
        for name, work in STEPS.items():
            progress(name)
            record["steps"][name] = guarded(work, run)
            progress(f"{name}: {_outcome(record['steps'][name])}")
            record["comparison"], record["passed"] = compare(run), passed(record)
            write_results(request.out, record)
    return record


def preflight(out: Path | None, video: Path | None, operator: Path | None) -> None:
    """Check what measuring needs before anything is read.

    Raises:
        BackendError: there is no GPU.
        InputError: no folder for the results is given, or a file or folder is missing.
    """
    from rvos_deploy.runtime.backends.gpu import find_gpu

    if find_gpu() is None:
        raise BackendError(
            "there is no NVIDIA GPU with a driver here, so nothing can be measured; "
            "--dry-run prints the plan and the rooflines on any machine"
        )
    if out is None:
        raise InputError("name a folder for the results with --out DIR")
    if video is not None and not video.is_file():
        raise InputError(f"--video {video}: there is no such file")
    if operator is not None and not operator.is_dir():
        raise InputError(f"--operator {operator}: there is no such folder")


def write_results(out: Path, record: dict[str, Any]) -> None:
    """Write the record as JSON and as HTML."""
    from rvos_deploy.benchmarks.gpu_report import render
    from rvos_deploy.files import write_text
    from rvos_deploy.json_file import write_json

    write_json(out / JSON_FILE, record)
    write_text(out / HTML_FILE, render(record))


def _outcome(step: dict[str, Any]) -> str:
    reason = f" ({step['reason']})" if "reason" in step else ""
    return f"{step['status']}{reason}, {step['seconds']:.0f} s"


def print_plan(record: dict[str, Any]) -> None:
    """Print plan, counts and rooflines as tables."""
    from rich.markup import escape

    from rvos_deploy.benchmarks.gpu_clocks import LOCK_CLOCKS
    from rvos_deploy.benchmarks.gpu_plan import INSTALL
    from rvos_deploy.console.output import result_console

    console = result_console()
    bundle, axes = record["bundle"], record["axes"]
    console.print(
        f"{bundle['model']} {bundle['precision']}, axes "
        + " ".join(f"{name}={size}" for name, size in axes.items())
    )
    console.print("\n[bold]plan[/bold] (on a machine with a GPU)")
    for number, step in enumerate(record["plan"], 1):
        console.print(f"{number:>3} {step['name']}: {step['does']} \\[{step['needs']}]")
    console.print("\n[bold]counted from the graphs[/bold]")
    console.print(_cost_table(record))
    console.print(
        "\n[bold]rooflines[/bold]: least milliseconds by published rates, bound by compute (c) or "
        "memory (m)"
    )
    console.print(_roofline_table(record))
    console.print(
        "A frame runs all graphs but the text encoder, which runs once an expression.\n"
        "Kernel launches and copies between host and GPU are not included."
    )
    console.print(f"\ninstall for a run, in a fresh environment: {escape(INSTALL)}")
    console.print(f"lock the SM clock before it: {escape(LOCK_CLOCKS)}")


def _cost_table(record: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("graph")
    for title in ("G multiply-adds", "weights MiB", "inputs MiB", "outputs MiB"):
        table.add_column(title, justify="right")
    for name, cost in record["costs"].items():
        sizes = (cost[f"{kind}_bytes"] / 2**20 for kind in ("weight", "input", "output"))
        table.add_row(name, f"{cost['total_macs'] / 1e9:.3f}", *(f"{size:.2f}" for size in sizes))
    return table


def _roofline_table(record: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("card")
    for title in (*record["costs"], "frame", "frames/s"):
        table.add_column(title.replace("_", " "), justify="right")
    for row in record["floors"]:
        if "reason" in row:
            table.add_row(row["card"], row["reason"])
            continue
        graphs = (f"{one['milliseconds']:.4f} {one['bound'][0]}" for one in row["graphs"].values())
        frame = f"{row['frame_milliseconds']:.4f}"
        table.add_row(row["card"], *graphs, frame, f"{row['frames_per_second']:.0f}")
    return table


@with_error_lines
def main(
    bundle: Annotated[
        Path, typer.Option("--bundle", "-b", help="Made by 'export', or a packaged one's name.")
    ] = Path("tiny"),
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for gpu.json and gpu.html.")
    ] = None,
    expressions: Annotated[
        int, typer.Option("--expressions", min=1, max=8, help="How many to follow at once.")
    ] = 1,
    frames: Annotated[
        int, typer.Option("--frames", min=10, help="Of every stream, over all rounds.")
    ] = 300,
    rounds: Annotated[
        int, typer.Option("--rounds", min=3, help="In which all contenders run in turn.")
    ] = 5,
    video: Annotated[
        Path | None,
        typer.Option("--video", help="File of the whole jobs. Default: a rendered clip."),
    ] = None,
    operator: Annotated[
        Path | None,
        typer.Option("--operator", help="models/ops of a clone of Deformable-DETR, to build."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="Weights that the bundle was exported from.")
    ] = None,
    card: Annotated[
        list[str] | None,
        typer.Option("--card", help="Rooflines of this card only; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan and rooflines; measure nothing.")
    ] = False,
) -> None:
    """Measure a bundle on this machine's GPU, beside the GPU's roofline.

    Lock the SM clock first: sudo nvidia-smi -i UUID -lgc MHZ, and -rgc to undo.
    """
    from rvos_deploy.benchmarks.gpu_plan import INSTALL, Request, choose_gpu_specs, new_record
    from rvos_deploy.bundle.folder import open_bundle
    from rvos_deploy.redaction import redact_command

    command = f"python -m rvos_deploy.benchmarks.gpu {redact_command(sys.argv[1:])}".strip()
    if not dry_run:
        preflight(out, video, operator)
    request = Request(
        open_bundle(bundle), out, expressions, frames, checkpoint, rounds, video, operator
    )
    record = new_record(request, choose_gpu_specs(card or ()), command)
    if dry_run:
        print_plan(record)
        if out is not None:
            write_results(out, record)
        return
    run_benchmark(request, record, lambda text: typer.echo(text, err=True))
    statuses = [step["status"] for step in record["steps"].values()]
    typer.echo(f"{out}: {statuses.count('done')} of {len(statuses)} steps done")
    if "not run" in statuses:
        typer.echo(f"what is missing is installed, in a fresh environment, by {INSTALL}", err=True)
    if not record["passed"]:
        raise typer.Exit(CHECK_FAILED)


if __name__ == "__main__":
    typer.run(main)
