"""What a GPU is needed for after a build: layer types of the engines, their numbers, their masks.

NOT RUN: it needs a GPU. Its parts are tested: the comparison with ONNX Runtime in the engine's
place, the reading of the inspector's JSON with samples of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.engines.build_plan import BuiltPlan
from rvos_deploy.engines.engine_parity import (
    PartlyEngines,
    compare_graph,
    compare_masks,
    require_all,
)
from rvos_deploy.engines.gpu import Gpu
from rvos_deploy.engines.layer_types import check_engine, inspected_types
from rvos_deploy.engines.messages import Messages, make_logger
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.errors import InputError
from rvos_deploy.parity.verification import CheckResult
from rvos_deploy.runtime.backends.cuda.libraries import import_cuda
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.backends.tensorrt.engine_loading import deserialize
from rvos_deploy.runtime.backends.tensorrt.graph import Engine, TensorRtGraph
from rvos_deploy.runtime.backends.tensorrt.session import open_engines

REFERENCE = {"bf16": "bf16-reference"}
"""Back end that engines are compared with, by precision; onnxruntime for the others."""

Say = Callable[[str, str, float, float | None], None]


@dataclass(frozen=True)
class Proof:
    """Results by graph; where ``reason`` is set, nothing was run, and it says why."""

    reason: str | None
    checks: Mapping[str, tuple[CheckResult, ...]] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def why_not(gpu: Gpu | None, plans: Sequence[BuiltPlan]) -> str | None:
    """Why these plans cannot be run on this machine; None when they can."""
    if gpu is None:
        return "built on a machine without a GPU, where it cannot be run"
    if any(gpu.compute_capability not in plan.compute_capabilities for plan in plans):
        return (
            f"built for compute capability {', '.join(plans[0].compute_capabilities)} on a machine "
            f"whose GPU, {gpu.name}, has {gpu.compute_capability}"
        )
    return None


def prove(
    trt: Any,
    gpu: Gpu | None,
    bundle: Bundle,
    settings: BuildSettings,
    plans: Sequence[BuiltPlan],
    profiles: Sequence[Profile],
    say: Say,
) -> Proof:
    """Run every check of the plans that this machine can run; a failed one raises.

    Raises:
        ParityError: numbers, masks or layer types that must not be shipped.
        BackendError: TensorRT, CUDA or ONNX Runtime failed.
    """
    reason = why_not(gpu, plans)
    if reason is not None:
        return Proof(reason)
    reference = make_backend(REFERENCE.get(bundle.precision, "onnxruntime"), "cpu")
    checks: dict[str, tuple[CheckResult, ...]] = {}
    layers: dict[str, dict[str, int]] = {}
    with open_engines(trt, import_cuda(), _engines(trt, bundle, settings, plans)) as engines:
        for index, plan in enumerate(plans):
            say(plan.graph, "parity", index / len(plans), None)
            graph = engines.graphs[plan.graph]
            assert isinstance(graph, TensorRtGraph)
            layers[plan.graph] = inspected_types(graph.layer_report())
            check_engine(plan.types["all"], layers[plan.graph], bundle.precision, plan.graph)
            with reference.open(bundle, [plan.graph]) as expected:
                compared = compare_graph(
                    plan.graph, engines, expected, bundle.network, plan.profiles
                )
                checks[plan.graph] = tuple(compared)
        # All at once, so that one message tells every check that failed.
        require_all([result for own in checks.values() for result in own], settings.target)
        say("masks of a clip", "parity", 1.0, None)
        masks = compare_masks(bundle, PartlyEngines(engines, reference), reference, profiles)
        require_all([masks], settings.target)
    return Proof(None, {name: (*own, masks) for name, own in checks.items()}, layers)


def _engines(
    trt: Any, bundle: Bundle, settings: BuildSettings, plans: Sequence[BuiltPlan]
) -> list[Engine]:
    """The plans as engines to load: just built, so that nothing of them needs a check."""
    logger = make_logger(trt, Messages())

    def engine(plan: BuiltPlan) -> Engine:
        def load(compute_capability: str) -> Any:
            return deserialize(
                trt,
                logger,
                plan.path.read_bytes(),
                bundle.graph_file(plan.graph) if settings.strip_weights else None,
                allow_host_code=settings.version_compatible,
            )

        def refuse(axes: Mapping[str, int]) -> InputError:
            return InputError(f"{plan.graph}: no profile takes {axes}; widen one with --profile")

        return Engine(bundle.graphs[plan.graph], plan.profiles, load, refuse)

    return [engine(plan) for plan in plans]
