"""``rvos-deploy build-engine``: a bundle's graphs into TensorRT engines, each with its proof."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvos_deploy.console.options import BundleArgument, JsonOption, check_outputs

if TYPE_CHECKING:
    from rvos_deploy.bundle.engine_sidecar import EngineSidecar


class TargetName(str, Enum):
    """TensorRTs that build engines."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


def build_engine(
    bundle: BundleArgument,
    target: Annotated[
        TargetName,
        typer.Option(
            "--target",
            metavar="NAME",
            help="tensorrt: builds on the GPU that will run it. tensorrt-rtx: builds anywhere.",
        ),
    ] = TargetName.tensorrt,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="SIZES",
            help="Sizes that the engine takes, AXIS=MIN:OPT:MAX or AXIS=SIZE, joined by commas, "
            "for example H=32:256:448,E=2. Again for another profile.",
        ),
    ] = None,
    graph: Annotated[
        list[str] | None,
        typer.Option("--graph", metavar="NAME", help="Build this graph only; may be repeated."),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option("--workspace", metavar="MIB", min=1, help="Scratch memory of a layer."),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level", metavar="0..5", min=0, max=5, help="Time spent on building."
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="tensorrt-rtx: GPU architecture to build for; may be repeated.",
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache",
            metavar="FILE",
            help="tensorrt: kernel timings of earlier builds. Default: in your cache folder.",
        ),
    ] = None,
    no_timing_cache: Annotated[
        bool, typer.Option("--no-timing-cache", help="tensorrt: time every kernel anew.")
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="tensorrt: later versions load it too; it then holds host code, which must be "
            "allowed when loading.",
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option("--hardware-compatible", help="tensorrt: runs on Ampere and later, slower."),
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights", help="tensorrt: without weights; the ONNX gives them on loading."
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Build TensorRT engines of a bundle, compare them with ONNX Runtime, and put them into it.

    An engine is put in place only when every check that can be run here has passed.
    Without a GPU none can: such an engine says so, and is refused when it is loaded.
    """
    from rvos_deploy.bundle.folder import bundle_files, find_bundle, open_bundle
    from rvos_deploy.cli.build_progress import build_progress
    from rvos_deploy.console.output import counted, mebibytes
    from rvos_deploy.environment import machine, versions
    from rvos_deploy.errors import InputError
    from rvos_deploy.json_file import write_json

    check_outputs([json, timing_cache], bundle_files(find_bundle(bundle)))
    try:
        from rvos_deploy.engines.build import build_engines
        from rvos_deploy.engines.settings import BuildSettings
    except ImportError as error:
        raise InputError(
            f"build-engine needs '{error.name}', which is not installed; "
            f"pip install 'rvos-deploy[cpu,{target.value}]'"
        ) from error
    settings = BuildSettings(
        target=target.value,
        profiles=tuple(profile or ()),
        workspace_mib=workspace,
        optimization_level=optimization_level,
        compute_capabilities=tuple(compute_capability or ()),
        timing_cache=timing_cache,
        use_timing_cache=not no_timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
    )
    opened = open_bundle(bundle)
    with build_progress() as progress:
        engines = build_engines(opened, settings, graphs=tuple(graph or ()), progress=progress)
    for engine in engines:
        typer.echo(
            f"{engine.graph}: {mebibytes(engine.plan_bytes)}, {engine.build_seconds:.1f} s, "
            f"{_types(engine)}{_plugins(engine)}"
        )
    typer.echo(
        f"{bundle}: {counted(len(engines), 'engine')} for {target.value} {_verdict(engines)}"
    )
    if json is not None:
        write_json(
            json,
            {
                "schema": "rvos-deploy/build-engine/1",
                "command": "build-engine",
                "bundle": str(bundle),
                "engines": [engine.as_dict() for engine in engines],
                "versions": versions(),
                "machine": machine(),
            },
        )


def _types(engine: EngineSidecar) -> str:
    """What multiplies in which type: ``25 multiplying layers float32``."""
    counts = engine.layers["network"]["multiplying"]
    return "multiplying layers: " + (
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
    )


def _plugins(engine: EngineSidecar) -> str:
    return f", {engine.plugin_layers} plugin layers" if engine.plugin_layers else ""


def _verdict(engines: list[EngineSidecar]) -> str:
    first = engines[0]
    capabilities = ", ".join(first.compute_capabilities)
    built = f"{first.tensorrt_version}, compute capability {capabilities}"
    if first.parity is None:
        return (
            f"{built}; parity NOT RUN ({first.parity_reason}): they are refused when loaded, until "
            "this command has run on the machine with the GPU"
        )
    checks = sum(len(engine.parity or ()) for engine in engines)
    masks = next(check for check in first.parity if "j_and_f" in check)
    return f"{built}; {checks} parity checks passed, J&F of the masks {masks['j_and_f']:.4f}"
