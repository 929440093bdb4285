"""One graph of a bundle into one plan: parse, configure, build, write."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.engines.builder_config import add_profiles, make_config, set_capabilities
from rvos_deploy.engines.gpu import Gpu
from rvos_deploy.engines.layer_types import network_types
from rvos_deploy.engines.messages import Messages, make_logger
from rvos_deploy.engines.network import check_plugin_layers, create_network, parse
from rvos_deploy.engines.onnx_source import read_onnx
from rvos_deploy.engines.progress import BuildProgress, Report, make_monitor
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.engines.timing_cache import attach_cache, default_cache_file, save_cache
from rvos_deploy.errors import BackendError

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class BuiltPlan:
    """A plan that was built, but not yet compared with anything.

    Args:
        graph: its name.
        path: of the plan, outside the bundle's own engines.
        profiles: of this graph's axes.
        compute_capabilities: that it was built for.
        types: output types of the network's layers (see ``network_types``).
        plugin_layers: how many deformable-attention plugins it has.
        seconds: parsing and building.
    """

    graph: str
    path: Path
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    types: Mapping[str, Any]
    plugin_layers: int
    seconds: float


def build_plan(
    trt: Any,
    gpu: Gpu | None,
    bundle: Bundle,
    graph: str,
    settings: BuildSettings,
    profiles: Sequence[Profile],
    folder: Path,
    report: Report,
) -> BuiltPlan:
    """Build one plan into ``folder``.

    Args:
        trt: the imported library of the settings' target.
        gpu: that kernels are timed on; None with TensorRT-RTX on a machine without.
        bundle: opened.
        graph: its name.
        settings: see there.
        profiles: of this graph's axes alone.
        folder: where the plan goes.
        report: told how far it is.

    Raises:
        BackendError: TensorRT cannot parse or build the graph; its first reason is in the line.
        KeyboardInterrupt: the build was interrupted.
    """
    target, spec = settings.library, bundle.graphs[graph]
    started = time.perf_counter()
    messages = Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = create_network(trt, target, builder)
    source = read_onnx(bundle.graph_file(graph))
    parser = parse(trt, target, network, logger, messages, source)
    config = make_config(trt, builder, settings, bundle.precision)
    add_profiles(builder, config, spec, profiles)
    cache = _timing_cache(trt, gpu, settings)
    if cache is not None:
        attach_cache(config, cache)
    capabilities: tuple[str, ...]
    if target.needs_gpu:
        capabilities = (gpu.compute_capability,) if gpu else ()
    else:
        capabilities = set_capabilities(trt, config, settings.compute_capabilities)
    path = folder / f"{graph}.plan"
    # Read before the build: the optimiser may change the network.
    types, plugins = network_types(network), check_plugin_layers(trt, target, network, source)
    _build(trt, builder, network, config, messages, report, path)
    report("built", 1.0, 0.0)
    del parser, source
    if cache is not None:
        save_cache(config, cache)
    return BuiltPlan(
        graph=graph,
        path=path,
        profiles=tuple(profiles),
        compute_capabilities=capabilities,
        types=types,
        plugin_layers=plugins,
        seconds=time.perf_counter() - started,
    )


def _timing_cache(trt: Any, gpu: Gpu | None, settings: BuildSettings) -> Path | None:
    """Where timings are kept; None for TensorRT-RTX, which times nothing."""
    if gpu is None or not settings.library.needs_gpu or not settings.use_timing_cache:
        return None
    return settings.timing_cache or default_cache_file(trt.__version__, gpu.name)


def _build(
    trt: Any,
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    messages: Messages,
    report: Report,
    path: Path,
) -> None:
    progress = BuildProgress(report)
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    messages.errors.clear()
    plan = builder.build_serialized_network(network, config)
    if progress.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot build {path.stem}: {messages.cause}; try a "
            "larger --workspace or smaller --profile maxima, or report it with this line"
        )
    with path.open("wb") as file:
        file.write(plan)
