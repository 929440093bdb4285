"""Make TensorRT's builder configuration: profiles, limits, flags, architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.engines.layer_types import HALF
from rvos_deploy.engines.profiles import input_shapes
from rvos_deploy.engines.settings import DEFAULT_CAPABILITIES, BuildSettings
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.graph_spec import GraphSpec

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx


def make_config(
    trt: Any, builder: trt.Builder, settings: BuildSettings, precision: str
) -> trt.IBuilderConfig:
    """Return the builder configuration without profiles, architectures and the timing cache.

    TF32 rounds the factors of fp32 products to 10 bits, and fp32 and int8 bundles were
    exported without it. With detailed verbosity the inspector reports types after the build; it
    costs no speed.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if precision not in HALF:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * 2**20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.strip_weights:
        # Refitting with the same weights keeps optimisations that depend on their values.
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    return config


def add_profiles(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    spec: GraphSpec,
    profiles: Sequence[Profile],
) -> None:
    """Add optimisation profiles to a build.

    Raises:
        BackendError: TensorRT refuses a profile that the graph's contract allows.
    """
    for index, sizes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in input_shapes(spec, sizes).items():
            profile.set_shape(name, low, best, high)
        if config.add_optimization_profile(profile) != index:
            raise BackendError(
                f"TensorRT refuses profile {index} of {spec.name} ({dict(sizes)}); "
                "report it with this line"
            )


def set_capabilities(rtx: Any, config: rtx.IBuilderConfig, asked: Sequence[str]) -> tuple[str, ...]:
    """Set and return the architectures that a TensorRT-RTX plan is built for.

    Args:
        rtx: the imported ``tensorrt_rtx``.
        config: the builder configuration.
        asked: compute capabilities such as "8.9"; empty asks for the default ones.

    Raises:
        InputError: TensorRT-RTX does not know an architecture; lists those that it knows.
    """
    chosen = tuple(dict.fromkeys(asked or DEFAULT_CAPABILITIES))
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in rtx.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    wrong = [name for name in chosen if name not in known]
    if wrong:
        raise InputError(
            f"--compute-capability {wrong[0]} is not known to tensorrt_rtx {rtx.__version__}; "
            f"known: {', '.join(known)}"
        )
    config.num_compute_capabilities = len(chosen)
    for index, name in enumerate(chosen):
        if not config.set_compute_capability(known[name], index):
            raise InputError(
                f"tensorrt_rtx {rtx.__version__} refuses --compute-capability {name}; "
                f"leave it out, or use one of {', '.join(known)}"
            )
    return chosen
