"""What a GPU is needed for after a build: layer types of the engines, their numbers, their masks.

NOT RUN: it needs a GPU. Its parts are tested: the comparison with ONNX Runtime in the engine's
place, the reading of the inspector's JSON with samples of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rvos_deploy.bundle.engine_sidecar import Profile
from rvos_deploy.engines.build_plan import BuildJob, BuiltPlan
from rvos_deploy.engines.engine_parity import (
    PartialEngines,
    compare_graph,
    compare_masks,
    require_all,
)
from rvos_deploy.engines.gpu import Gpu
from rvos_deploy.engines.layer_types import check_engine, inspected_types
from rvos_deploy.engines.messages import Messages, make_logger
from rvos_deploy.errors import InputError
from rvos_deploy.parity.verification import CheckResult
from rvos_deploy.runtime.backends.cuda.libraries import import_cuda
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.backends.tensorrt.engine_loading import deserialize
from rvos_deploy.runtime.backends.tensorrt.graph import Engine, TensorRtGraph
from rvos_deploy.runtime.backends.tensorrt.session import open_engines

REFERENCE = {"bf16": "bf16-reference"}
"""Back end that engines are compared with, by precision; onnxruntime for the others."""

Progress = Callable[[str, str, float, float | None], None]


@dataclass(frozen=True)
class ParityReport:
    """Results by graph; where ``reason`` is set, nothing was run, and it says why."""

    reason: str | None
    checks: Mapping[str, tuple[CheckResult, ...]] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def untestable_reason(gpu: Gpu | None, plans: Sequence[BuiltPlan]) -> str | None:
    """Why these plans cannot be run on this machine; None when they can."""
    if gpu is None:
        return "built on a machine without a GPU, where it cannot be run"
    if any(gpu.compute_capability not in plan.compute_capabilities for plan in plans):
        return (
            f"built for compute capability {', '.join(plans[0].compute_capabilities)} on a machine "
            f"whose GPU, {gpu.name}, has {gpu.compute_capability}"
        )
    return None


def check_parity(
    job: BuildJob, plans: Sequence[BuiltPlan], profiles: Sequence[Profile], progress: Progress
) -> ParityReport:
    """Run every check of the plans that this machine can run; a failed one raises.

    Raises:
        ParityError: numbers, masks or layer types that must not be shipped.
        BackendError: TensorRT, CUDA or ONNX Runtime failed.
    """
    reason = untestable_reason(job.gpu, plans)
    if reason is not None:
        return ParityReport(reason)
    bundle, target = job.bundle, job.settings.target
    reference = make_backend(REFERENCE.get(bundle.precision, "onnxruntime"), "cpu")
    checks: dict[str, tuple[CheckResult, ...]] = {}
    layers: dict[str, dict[str, int]] = {}
    with open_engines(job.trt, import_cuda(), _engines(job, plans)) as engines:
        for index, plan in enumerate(plans):
            progress(plan.graph, "parity", index / len(plans), None)
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
        require_all([result for own in checks.values() for result in own], target)
        progress("masks of a clip", "parity", 1.0, None)
        masks = compare_masks(bundle, PartialEngines(engines, reference), reference, profiles)
        require_all([masks], target)
    return ParityReport(None, {name: (*own, masks) for name, own in checks.items()}, layers)


def _engines(job: BuildJob, plans: Sequence[BuiltPlan]) -> list[Engine]:
    """Return the plans as engines to load. They were just built, so nothing checks them first."""
    logger = make_logger(job.trt, Messages())

    def engine(plan: BuiltPlan) -> Engine:
        def load(compute_capability: str) -> Any:
            return deserialize(
                job.trt,
                logger,
                plan.path.read_bytes(),
                job.bundle.graph_file(plan.graph) if job.settings.strip_weights else None,
                allow_host_code=job.settings.version_compatible,
            )

        def refuse(axes: Mapping[str, int]) -> InputError:
            return InputError(f"{plan.graph}: no profile supports {axes}; widen one with --profile")

        return Engine(job.bundle.graphs[plan.graph], plan.profiles, load, refuse)

    return [engine(plan) for plan in plans]
