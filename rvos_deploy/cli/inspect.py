"""``rvos-deploy inspect``: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvos_deploy.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.runtime.bundle import Bundle


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by 'export'.")],
    parity: Annotated[
        bool, typer.Option("--parity", help="Also show every parity check of the export.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Check a bundle's hashes and show its graphs, sizes, types, weights, versions and parity."""
    from rich.console import Console

    from rvos_deploy.cli.output import mebibytes
    from rvos_deploy.cli.parity_table import parity_table
    from rvos_deploy.json_file import write_json
    from rvos_deploy.runtime.bundle import open_bundle

    opened = open_bundle(bundle)
    manifest = opened.manifest
    console = Console()
    for label, value in _facts(opened):
        console.print(f"[bold]{label:<12}[/]{value}", highlight=False)
    console.print(_graph_table(opened, mebibytes))
    checks = manifest["parity"]["checks"]
    failed = sum(not check["passed"] for check in checks)
    console.print(
        f"[bold]parity      [/]{len(checks)} checks against {manifest['parity']['reference']}, "
        f"{failed} failed",
        highlight=False,
    )
    if parity:
        console.print(parity_table(checks))
    if json is not None:
        write_json(json, {"command": "inspect", "bundle": str(bundle), **manifest})


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    height, width = bundle.config.input_size
    return [
        ("bundle", str(bundle.path)),
        ("model", f"{bundle.config.name}, {manifest['parameters'] / 1e6:.1f} M parameters"),
        ("weights", _weights(manifest["weights"])),
        ("precision", bundle.precision),
        ("input", f"{height}x{width} box, threshold {bundle.config.threshold}"),
        ("created", manifest["created"]),
        (
            "versions",
            ", ".join(f"{k} {v}" for k, v in manifest["versions"].items() if k != "backend"),
        ),
    ]


def _versions(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "backend")


def _weights(weights: dict[str, Any]) -> str:
    if weights["random"]:
        return f"random, seed {weights['seed']} (to try the pipeline; masks mean nothing)"
    return f"{weights['checkpoint']} (sha256 {weights['checkpoint_sha256'][:12]}...)"


def _graph_table(bundle: Bundle, size: Any) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("graph", "size", "inputs", "outputs"):
        table.add_column(title, justify="right" if title == "size" else "left")
    for name, spec in bundle.graphs.items():
        files = [f for f in bundle.manifest["files"] if f.startswith(f"{name}.onnx")]
        stored = sum(bundle.manifest["files"][file]["bytes"] for file in files)
        table.add_row(name, size(stored), _tensors(spec.inputs), _tensors(spec.outputs))
    return table


def _tensors(tensors: Any) -> str:
    return "\n".join(
        f"{tensor.name} {tensor.dtype}\\[{', '.join(map(str, tensor.shape))}]" for tensor in tensors
    )
