"""Run every measurement on a GPU in one command, beside the roofline of the GPU.

``python -m rvos_deploy.benchmarks.gpu --out DIR [--bundle BUNDLE]``

The command checks the machine, measures the GPU's rates, runs the ``gpu`` tests, and builds all
engines with their parity checks. Then it measures kernels, every graph and the whole stream with
TensorRT, ONNX Runtime CUDA, eager PyTorch and torch.compile. Every step rewrites ``DIR/gpu.json``
and ``DIR/gpu.html``. A step that lacks something is recorded as not run, with the reason. Engines
are installed in the bundle.

``pip install -e '.[gpu-benchmark]'`` in a fresh environment brings what every step needs. Not the
development extra: its onnxruntime shadows onnxruntime-gpu.

``--dry-run`` prints the plan, and the rooflines by published rates; it works on any machine.

NOT RUN on a GPU: the development machine has none. The tests run the dry run, the counting, the
guards of the steps and the report.
"""

from __future__ import annotations

import sys
import tempfile
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
    with tempfile.TemporaryDirectory(prefix="rvos-deploy-") as folder:
        run = Run(request, Path(folder), record)
        for name, work in STEPS.items():
            progress(name)
            record["steps"][name] = guarded(work, run)
            progress(f"{name}: {_outcome(record['steps'][name])}")
            record["comparison"], record["passed"] = compare(run), passed(record)
            write_results(request.out, record)
    return record


def require_gpu(out: Path | None) -> None:
    """Check what measuring needs before anything is read.

    Raises:
        BackendError: there is no GPU.
        InputError: no folder for the results is given.
    """
    from rvos_deploy.runtime.backends.gpu import find_gpu

    if find_gpu() is None:
        raise BackendError(
            "there is no NVIDIA GPU with a driver here, so nothing can be measured; "
            "--dry-run prints the plan and the rooflines on any machine"
        )
    if out is None:
        raise InputError("name a folder for the results with --out DIR")


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
        int, typer.Option("--frames", min=10, help="Of every stream, after the warm-up.")
    ] = 300,
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
    """Measure a bundle on this machine's GPU, beside the GPU's roofline."""
    from rvos_deploy.benchmarks.gpu_plan import INSTALL, Request, choose_gpu_specs, new_record
    from rvos_deploy.bundle.folder import open_bundle
    from rvos_deploy.redaction import redact_command

    command = f"python -m rvos_deploy.benchmarks.gpu {redact_command(sys.argv[1:])}".strip()
    if not dry_run:
        require_gpu(out)
    request = Request(open_bundle(bundle), out, expressions, frames, checkpoint)
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
