"""Print and write the results of ``export``: size of the bundle, and parity checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rvos_deploy.export.bundle_export import ExportReport


def print_report(report: ExportReport, bundle: Path, stored: int, not_proved: str | None) -> None:
    """Print the bundle's size (``stored``, in bytes), the parity checks, and missing proofs."""
    from rvos_deploy.cli.parity_table import notes
    from rvos_deploy.cli.quantization import describe_quantization
    from rvos_deploy.console.output import mebibytes

    worst = max(v.comparison.max_abs for v in report.results if hasattr(v, "comparison"))
    masks = next(v for v in report.results if hasattr(v, "j_and_f"))
    graphs = len(list(bundle.glob("*.onnx")))
    typer.echo(
        f"{bundle}: {mebibytes(stored)}, {graphs} graphs; {len(report.results)} parity checks "
        f"passed (largest difference {worst:.1e}, J&F of the masks {masks.j_and_f:.4f})"
    )
    if report.quantization is not None:
        typer.echo(f"int8: {describe_quantization(report.quantization)}")
    for line in notes([result.as_dict() for result in report.results]):
        typer.echo(line)
    if not_proved is not None:
        typer.echo(f"not proved: {not_proved}")
    typer.echo(f"{report.seconds:.1f} s, peak memory {mebibytes(report.peak_memory_bytes)}")


def write_report(json: Path | None, report: ExportReport, bundle: Path, stored: int) -> None:
    """Write the record of ``--json``."""
    from rvos_deploy.bundle.manifest import plain
    from rvos_deploy.console.output_files import write_record
    from rvos_deploy.environment import versions

    content = {
        "bundle": str(bundle),
        "bytes": stored,
        "seconds": report.seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
        "checks": [result.as_dict() for result in report.results],
        "quantization": None if report.quantization is None else plain(report.quantization),
    }
    write_record(json, "export", content, versions("torch", "onnx", "onnxruntime"))
