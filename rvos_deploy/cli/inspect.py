"""Show the content of a bundle: ``rvos-deploy inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rvos_deploy.console.options import BundleArgument, JsonOption
from rvos_deploy.console.output_files import check_outputs, write_record

if TYPE_CHECKING:
    from rich.table import Table

    from rvos_deploy.bundle.folder import Bundle
    from rvos_deploy.bundle.manifest import Manifest


def inspect(
    bundle: BundleArgument,
    parity: Annotated[
        bool, typer.Option("--parity", help="Also show every parity check of the export.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Check a bundle's hashes; show its graphs, types, weights, versions, parity and engines.

    Engines are hashed but not loaded, so neither TensorRT nor a GPU is needed. "this machine" says
    whether the CPU kernel of deformable attention was built.
    """
    from rvos_deploy.bundle.engine_sidecar import list_engines
    from rvos_deploy.bundle.folder import bundle_files, find_bundle, open_bundle
    from rvos_deploy.bundle.manifest import plain
    from rvos_deploy.cli.parity_table import notes, parity_table
    from rvos_deploy.console.output import result_console
    from rvos_deploy.cpu_ops import ms_deform_attn as kernel
    from rvos_deploy.environment import versions

    check_outputs([json], bundle_files(find_bundle(bundle)))
    opened = open_bundle(bundle)
    engines = list_engines(opened.path)
    console = result_console()
    console.print(_fact_table(opened), _graph_table(opened))
    if engines:
        from rvos_deploy.cli.engine_table import engine_table

        console.print()
        console.print(engine_table(opened, engines))
    if parity:
        console.print()
        checks = [plain(check) for check in opened.manifest.parity.checks]
        console.print(parity_table(checks, console.width))
        for line in notes(checks):
            typer.echo(line)
    content = {
        "bundle": str(bundle),
        "manifest": opened.manifest.as_dict(),
        "engines": [
            {"error": str(engine)} if isinstance(engine, Exception) else engine.as_dict()
            for engine in engines
        ],
        "cpu_kernel": kernel.instructions() if kernel.available() else None,
    }
    write_record(json, "inspect", content, versions())


def _fact_table(bundle: Bundle) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")  # a URL is one long word
    for label, value in _facts(bundle):
        table.add_row(label, escape(value))
    return table


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    from rvos_deploy.cli.weight_facts import weight_facts
    from rvos_deploy.cpu_ops import ms_deform_attn as kernel

    manifest = bundle.manifest
    checks = manifest.parity.checks
    failed = sum(not check.passed for check in checks)
    return [
        ("bundle", str(bundle.path)),
        ("model", f"{bundle.config.name}, {manifest.parameters / 1e6:.1f} M parameters"),
        *weight_facts(manifest.weights),
        ("precision", bundle.precision),
        *_quantization(manifest),
        ("input", f"{_size(bundle)}, threshold {_threshold(bundle)}"),
        ("graphs", _form(bundle)),
        ("created", manifest.created),
        ("versions", _versions(manifest.versions)),
        (
            "parity",
            f"{len(checks)} checks against {manifest.parity.reference}, {failed} failed",
        ),
        ("accepted", _accepted(bundle)),
        *([("not proved", unproved)] if (unproved := manifest.parity.not_proved) else []),
        ("this machine", f"CPU kernel of deformable attention: {kernel.describe()}"),
    ]


def _quantization(manifest: Manifest) -> list[tuple[str, str]]:
    """Describe how the backbone became int8, in bundles that have one."""
    from msgspec import UNSET

    from rvos_deploy.cli.quantization import describe_quantization

    record = manifest.quantization
    return [] if record is UNSET else [("int8", describe_quantization(record))]


def _form(bundle: Bundle) -> str:
    """Describe the opset of the files, and the sizes that are constants in them."""
    from msgspec import UNSET

    found = bundle.manifest.opsets
    opsets = set() if found is UNSET else {found.get(name) for name in bundle.graphs}
    if len(opsets) == 1:
        opset = f"opset {opsets.pop()}"
    elif found is UNSET:
        opset = "opset not recorded"
    else:
        opset = "opsets " + ", ".join(f"{name} {number}" for name, number in found.items())
    fixed = {name: size for spec in bundle.graphs.values() for name, size in spec.fixed.items()}
    if not fixed:
        return f"ONNX {opset}, all sizes dynamic"
    open_axes = {axis.name for spec in bundle.graphs.values() for axis in spec.axes} - set(fixed)
    sizes = ", ".join(f"{name}={size}" for name, size in fixed.items())
    return f"ONNX {opset}, fixed at {sizes}" + (
        f"; dynamic: {', '.join(sorted(open_axes))}" if open_axes else ""
    )


def _size(bundle: Bundle) -> str:
    """Describe the default size of frames."""
    from rvos_deploy.graph_io.graph_spec import fixed_box

    return bundle.network.describe_size(fixed_box(bundle.graphs))


def _threshold(bundle: Bundle) -> str:
    """Describe the threshold of both modes, or one for each mode with a note of its origin."""
    from msgspec import UNSET

    thresholds = bundle.manifest.thresholds
    if thresholds is UNSET:
        return str(bundle.config.threshold)
    return f"{thresholds.offline} offline, {thresholds.online} online ({thresholds.note})"


def _accepted(bundle: Bundle) -> str:
    """Describe how much the clip's masks may differ from PyTorch's in this bundle."""
    from rvos_deploy.parity.verification import allowed_differences

    allowed = allowed_differences(bundle)
    stated = "" if allowed.excess_is_stated else " (the default)"
    return (
        f"J&F of the clip's masks {allowed.j_and_f}, {bundle.network.choice_excess_name} "
        f"{allowed.excess:.2g}{stated}"
    )


def _versions(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "backend")


def _graph_table(bundle: Bundle) -> Table:
    from rich.table import Table

    from rvos_deploy.console.output import mebibytes

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("inputs", no_wrap=True)
    table.add_column("outputs", no_wrap=True)
    for name, spec in bundle.graphs.items():
        stored = sum(entry.bytes for entry in bundle.onnx_entries(name).values())
        table.add_row()
        table.add_row(f"[bold]{name}[/], {mebibytes(stored)}")
        table.add_row(_tensors(spec.inputs, spec.fixed), _tensors(spec.outputs, spec.fixed))
    return table


def _tensors(tensors: Any, fixed: Mapping[str, int]) -> str:
    return "\n".join(
        f"{tensor.name} {tensor.dtype}\\[{','.join(map(str, tensor.fixed_shape(fixed)))}]"
        for tensor in tensors
    )
