"""Build the engines of a bundle (``build-engine``), check them, and only then install them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rvos_deploy.bundle.engine_sidecar import (
    EngineSidecar,
    engine_folder,
    plan_file,
    sidecar_file,
)
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.engines.build_plan import BuildJob, BuiltPlan, build_plan
from rvos_deploy.engines.layer_types import HALF, check_network, half_share
from rvos_deploy.engines.parity_checks import ParityReport, ParityTools, check_parity, parity_tools
from rvos_deploy.engines.profiles import (
    bundle_axes,
    check_streamable,
    graph_profile,
    read_profiles,
)
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.engines.targets import open_target, takes_plugin
from rvos_deploy.environment import versions
from rvos_deploy.errors import InputError
from rvos_deploy.files import (
    cannot_write,
    create_temporary_folder,
    discard,
    holding,
    sha256_file,
)
from rvos_deploy.json_file import write_json
from rvos_deploy.progress import ShareProgress, ignore_shares
from rvos_deploy.runtime.backends.cuda.device import acquire_device

AMPERE = 80
"""The architecture of the PTX in hardware-compatible engines (see HARDWARE_COMPATIBLE_FROM)."""


def build_engines(
    bundle: Bundle,
    settings: BuildSettings,
    *,
    graphs: Sequence[str] = (),
    progress: ShareProgress = ignore_shares,
) -> list[EngineSidecar]:
    """Build engines, check them, and install them in the bundle with their sidecars.

    The plans are built in a hidden folder beside their destination. They are renamed only after
    every check that this machine can run has passed: plugin layers, layer types, and, on a machine
    with a GPU, every output at every corner of every profile and the masks of a clip, against ONNX
    Runtime. The sidecar of an engine that could not be run says so, and the engine is refused when
    it is loaded.

    Args:
        bundle: an opened bundle.
        settings: of the build.
        graphs: names of the graphs to build; empty builds all of them.
        progress: is told the graph, the phase, the share of that graph that is done (0 to 1), and
            the seconds that remain, or None.

    Returns:
        The sidecars, in the order of the bundle's graphs.

    Raises:
        InputError: profiles or options do not fit, or another process builds there.
        BackendError: TensorRT or the GPU is missing, or TensorRT cannot build.
        ParityError: an engine failed a check; nothing was installed.
    """
    profiles = read_profiles(settings.profiles, bundle)
    check_streamable(profiles, bundle_axes(bundle))
    chosen = _select(bundle, graphs)
    trt, gpu = open_target(settings.library, settings.ordinal)
    tools = parity_tools(gpu, bundle.precision)
    plugin = takes_plugin(settings.library, trt)
    if plugin:
        from rvos_deploy.engines.plugins.ms_deform_attn.compile import device_arch
        from rvos_deploy.engines.plugins.ms_deform_attn.plugin import register_plugin

        # A hardware-compatible engine carries PTX for the oldest GPU that may load it.
        arch = AMPERE if settings.hardware_compatible else device_arch(settings.ordinal)
        # The operator of an int8 bundle is float32, like everything but the backbone's products.
        register_plugin(arch, "fp32" if bundle.precision == "int8" else bundle.precision)
    job = BuildJob(trt, gpu, bundle, settings, plugin)
    place = engine_folder(bundle.path, settings.target)
    with _staging(place) as staging, _on_gpu(tools, settings.ordinal):
        plans = []
        for name in chosen:
            own = [graph_profile(bundle.graphs[name], profile) for profile in profiles]
            plans.append(build_plan(job, name, own, staging, partial(progress, name)))
        _check_networks(plans, bundle.precision)
        parity = check_parity(job, tools, plans, profiles, progress)
        sidecars = [_sidecar(job, plan, parity) for plan in plans]
        for plan, sidecar in zip(plans, sidecars, strict=True):
            _install(bundle, plan, sidecar)
    return sidecars


@contextmanager
def _on_gpu(tools: ParityTools | None, ordinal: int) -> Iterator[None]:
    """Make a GPU's context current: TensorRT builds on the GPU that is current in the thread. NOT
    RUN: it needs two GPUs.
    """
    if tools is None:
        yield
        return
    device = acquire_device(tools.cuda, ordinal)
    try:
        with device.current():
            yield
    finally:
        device.release()


@contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """Create a folder beside the engines, and lock the engines against other builds."""
    with holding(place, "building engines in"):
        try:
            staging = create_temporary_folder(place / "build")
        except OSError as error:
            raise InputError(cannot_write(place, error)) from error
        try:
            yield staging
        finally:
            discard(staging)


def _select(bundle: Bundle, graphs: Sequence[str]) -> list[str]:
    unknown = [name for name in graphs if name not in bundle.graphs]
    if unknown:
        raise InputError(f"--graph {unknown[0]}: the bundle has {', '.join(bundle.graphs)}")
    return [name for name in bundle.graphs if not graphs or name in graphs]


def _check_networks(plans: Sequence[BuiltPlan], precision: str) -> None:
    """Check half precision over all graphs together, because some graphs are mostly fp32."""
    together: dict[str, int] = {}
    for plan in plans:
        for name, count in plan.types["multiplying"].items():
            together[name] = together.get(name, 0) + count
    check_network(together, precision, ", ".join(plan.graph for plan in plans))


def _sidecar(job: BuildJob, plan: BuiltPlan, parity: ParityReport) -> EngineSidecar:
    bundle, settings = job.bundle, job.settings
    checks = parity.checks.get(plan.graph)
    engine_types = parity.layers.get(plan.graph)
    return EngineSidecar(
        graph=plan.graph,
        target=settings.target,
        precision=bundle.precision,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        plan_sha256=sha256_file(plan.path),
        plan_bytes=plan.path.stat().st_size,
        onnx_sha256={name: entry.sha256 for name, entry in bundle.onnx_entries(plan.graph).items()},
        tensorrt_version=job.trt.__version__,
        compute_capabilities=plan.compute_capabilities,
        gpu=job.gpu.name if job.gpu else None,
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible,
        stripped=settings.strip_weights,
        profiles=plan.profiles,
        options=settings.options(),
        settings={
            "workspace_mib": settings.workspace_mib,
            "optimization_level": settings.optimization_level,
            "tf32": bundle.precision in HALF,
        },
        layers={
            "network": plan.types,
            "half_share": half_share(plan.types["multiplying"], bundle.precision),
            "engine": engine_types,
            "engine_reason": None if engine_types is not None else parity.reason,
        },
        plugin_layers=plan.plugin_layers,
        build_seconds=round(plan.seconds, 3),
        versions=versions(*_PACKAGES[settings.target]),
        parity=None if checks is None else tuple(check.as_dict() for check in checks),
        parity_reason=parity.reason,
    )


_PACKAGES = {
    "tensorrt": ("tensorrt", "onnx", "onnxruntime", "cuda-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu12", "onnx", "onnxruntime"),
}


def _install(bundle: Bundle, plan: BuiltPlan, sidecar: EngineSidecar) -> None:
    """Rename plan and sidecar. Between the two renames, the old sidecar's hash refuses the new
    plan.
    """
    installed = plan_file(bundle.path, sidecar.target, plan.graph)
    plan.path.replace(installed)
    write_json(sidecar_file(installed), sidecar.as_dict())
