"""Build and check TensorRT engines of a bundle's graphs: ``rvos-deploy build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rvos_deploy.bundle.engine_sidecar import Target
from rvos_deploy.console.options import BundleArgument, GpuOption, JsonOption
from rvos_deploy.console.output_files import check_outputs, write_record

if TYPE_CHECKING:
    from rvos_deploy.bundle.engine_sidecar import EngineSidecar


def build_engine(
    bundle: BundleArgument,
    target: Annotated[
        Target,
        typer.Option(
            "--target",
            metavar="NAME",
            help="tensorrt builds on the GPU that will run the engine, tensorrt-rtx anywhere.",
        ),
    ] = "tensorrt",
    device: GpuOption = "cuda",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="SIZES",
            help="Sizes that the engine accepts: AXIS=MIN:OPT:MAX or AXIS=SIZE, joined by commas, "
            "for example H=32:256:448,E=2. Repeat the option for more profiles.",
        ),
    ] = None,
    graph: Annotated[
        list[str] | None,
        typer.Option(
            "--graph", metavar="NAME", help="Build only this graph. Repeat the option for more."
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            "--workspace",
            metavar="MIB",
            min=1,
            help="Scratch memory that a layer may use. Default: all memory of the GPU.",
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level",
            metavar="0..5",
            min=0,
            max=5,
            help="A higher level takes longer to build, for a faster engine. Default: 3.",
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y",
            help="tensorrt-rtx: GPU architecture to build for. Repeat the option for more.",
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
        bool, typer.Option("--no-timing-cache", help="tensorrt: measure every kernel again.")
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="tensorrt: let later versions load the engine. The engine then holds host code, "
            "which must be allowed on loading.",
        ),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible",
            help="tensorrt: let every GPU from Ampere on run the engine, at a lower speed.",
        ),
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights",
            help="tensorrt: leave the weights out, and read them from the ONNX file on loading.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Build TensorRT engines, compare them with ONNX Runtime, and add them to the bundle.

    An engine is added only if every check that can run on this machine passes.

    Without a GPU, no check can run. The engine records this, and is refused on loading.
    """
    from rvos_deploy.bundle.folder import bundle_files, find_bundle, open_bundle
    from rvos_deploy.cli.build_progress import build_progress
    from rvos_deploy.console.extras import needs_extra
    from rvos_deploy.console.output import counted, mebibytes
    from rvos_deploy.environment import versions

    check_outputs([json, timing_cache], bundle_files(find_bundle(bundle)))
    with needs_extra("build-engine", f"cpu,{target}"):
        from rvos_deploy.engines.build import build_engines
        from rvos_deploy.engines.settings import BuildSettings
    settings = BuildSettings(
        target=target,
        device=device,
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
    typer.echo(f"{bundle}: {counted(len(engines), 'engine')} for {target} {_parity(engines)}")
    content = {"bundle": str(bundle), "engines": [engine.as_dict() for engine in engines]}
    write_record(json, "build-engine", content, versions())


def _types(engine: EngineSidecar) -> str:
    """Count the multiplying layers by type: ``multiplying layers: 25 float32``."""
    counts = engine.layers["network"]["multiplying"]
    return "multiplying layers: " + (
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
    )


def _plugins(engine: EngineSidecar) -> str:
    return f", {engine.plugin_layers} plugin layers" if engine.plugin_layers else ""


def _parity(engines: list[EngineSidecar]) -> str:
    """Describe the target of the engines, and the results of the parity checks."""
    first = engines[0]
    capabilities = ", ".join(first.compute_capabilities)
    built = f"{first.tensorrt_version}, compute capability {capabilities}"
    if first.parity is None:
        return (
            f"{built}; parity NOT RUN ({first.parity_reason}): the engines are refused when "
            "loaded, until this command has run on the machine with the GPU"
        )
    checks = sum(len(engine.parity or ()) for engine in engines)
    masks = next(check for check in first.parity if "j_and_f" in check)
    return f"{built}; {checks} parity checks passed, J&F of the masks {masks['j_and_f']:.4f}"
