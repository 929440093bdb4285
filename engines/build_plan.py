"""Build the plan of one graph: parse, configure, build, write."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.engines.builder_config import add_profiles, make_config, set_capabilities
from rvos_deploy.engines.layer_types import network_types
from rvos_deploy.engines.messages import Messages, make_logger
from rvos_deploy.engines.network import check_plugin_layers, create_network, parse
from rvos_deploy.engines.onnx_source import read_onnx
from rvos_deploy.engines.progress import BuildProgress, Report, make_monitor
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.engines.timing_cache import attach_cache, default_cache_file, save_cache
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.gpu import Gpu

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class BuildJob:
    """Hold the values that all plans of one build share.

    Args:
        trt: the imported library of the settings' target.
        gpu: the GPU that kernels are timed on; None with TensorRT-RTX on a machine without one.
        bundle: an opened bundle.
        settings: of the build.
        plugin: our plugin goes into the engines; it was registered.
    """

    trt: Any
    gpu: Gpu | None
    bundle: Bundle
    settings: BuildSettings
    plugin: bool = False


@dataclass(frozen=True)
class BuiltPlan:
    """A plan that was built, and not yet compared with ONNX Runtime.

    Args:
        graph: the name of its graph.
        path: path of the plan, outside the bundle's own engines.
        profiles: sizes of this graph's axes.
        compute_capabilities: the architectures that it was built for.
        types: output types of the network's layers (see ``network_types``).
        plugin_layers: how many deformable-attention plugins it has.
        seconds: the time to parse and build.
    """

    graph: str
    path: Path
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    types: Mapping[str, Any]
    plugin_layers: int
    seconds: float


def build_plan(
    job: BuildJob, graph: str, profiles: Sequence[Profile], folder: Path, report: Report
) -> BuiltPlan:
    """Build the plan of one graph.

    Args:
        job: of the build.
        graph: the graph's name.
        profiles: sizes of this graph's axes alone.
        folder: where the plan is written, as ``<graph>.plan``.
        report: is told the progress.

    Raises:
        BackendError: TensorRT cannot parse or build the graph; gives TensorRT's first reason.
        KeyboardInterrupt: the build was interrupted.
    """
    trt, settings = job.trt, job.settings
    started = time.perf_counter()
    messages = Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = create_network(trt, builder, plugin=job.plugin)
    source = read_onnx(job.bundle.graph_file(graph))
    with _plugin_failures(job):
        parser = parse(trt, network, logger, messages, source)
    plugins = check_plugin_layers(trt, network, source, plugin=job.plugin)
    config = make_config(trt, builder, settings, job.bundle.precision)
    add_profiles(builder, config, job.bundle.graphs[graph], profiles)
    cache = _timing_cache(job)
    if cache is not None:
        attach_cache(config, cache)
    capabilities = _capabilities(job, config)
    # The optimiser may change the network, so its types are read before the build.
    types = network_types(network)
    messages.errors.clear()
    with _plugin_failures(job):
        plan = _serialize(job, builder, network, config, report)
        if plan is None:
            raise BackendError(
                f"{trt.__name__} {trt.__version__} cannot build {graph}: {messages.cause}; try a "
                "larger --workspace or smaller --profile maxima, or report it with this line"
            )
    path = folder / f"{graph}.plan"
    with path.open("wb") as file:
        file.write(plan)
    report("built", 1.0, 0.0)
    # The parser and the source own the weights until the build has ended.
    del parser, source
    if cache is not None:
        save_cache(config, cache)
    seconds = time.perf_counter() - started
    return BuiltPlan(graph, path, tuple(profiles), capabilities, types, plugins, seconds)


@contextmanager
def _plugin_failures(job: BuildJob) -> Iterator[None]:
    """Raise the plugin's own error in place of TensorRT's, which only says that it failed."""
    try:
        yield
    except BackendError:
        if job.plugin:
            from rvos_deploy.engines.plugins.ms_deform_attn.plugin import raise_plugin_failure

            raise_plugin_failure()
        raise


def _timing_cache(job: BuildJob) -> Path | None:
    """Return the file of kernel timings; None for TensorRT-RTX, which times nothing."""
    settings = job.settings
    if job.gpu is None or not settings.library.needs_gpu or not settings.use_timing_cache:
        return None
    return settings.timing_cache or default_cache_file(job.trt.__version__, job.gpu.name)


def _capabilities(job: BuildJob, config: trt.IBuilderConfig) -> tuple[str, ...]:
    if job.settings.library.needs_gpu:
        return (job.gpu.compute_capability,) if job.gpu else ()
    return set_capabilities(job.trt, config, job.settings.compute_capabilities)


def _serialize(
    job: BuildJob,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    report: Report,
) -> trt.IHostMemory | None:
    """Build the network, and return the plan; None where TensorRT cannot.

    Raises KeyboardInterrupt: the build was interrupted.
    """
    progress = BuildProgress(report)
    # This reference keeps the monitor alive until the build has ended.
    monitor = make_monitor(job.trt, progress)
    config.progress_monitor = monitor
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if progress.interrupted:
        raise KeyboardInterrupt
    return plan
