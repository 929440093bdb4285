"""Run all checks of built plans that need a GPU: layer types, outputs, masks.

NOT RUN: it needs a GPU. The tests run its parts: the comparison with ONNX Runtime in the engine's
place, and the inspector's JSON from samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from rvos_deploy.engines.layer_types import inspected_types, warn_of_lost_types
from rvos_deploy.engines.messages import Messages, make_logger
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.parity.verification import CheckResult
from rvos_deploy.progress import ShareProgress
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries, import_cuda
from rvos_deploy.runtime.backends.gpu import Gpu
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.backends.tensorrt.engine_checks import EngineMachine
from rvos_deploy.runtime.backends.tensorrt.engine_loading import deserialize
from rvos_deploy.runtime.backends.tensorrt.graph import Engine, TensorRtGraph
from rvos_deploy.runtime.backends.tensorrt.session import open_engines

REFERENCE = {"bf16": "bf16-reference"}
"""The back end that engines are compared with, by precision; onnxruntime for the others."""


@dataclass(frozen=True)
class ParityReport:
    """The results of all plans.

    Args:
        reason: why nothing could be run; None where everything was run.
        checks: results by graph.
        layers: layers of the engine by type, by graph.
    """

    reason: str | None
    checks: Mapping[str, tuple[CheckResult, ...]] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def untestable_reason(gpu: Gpu | None, plans: Sequence[BuiltPlan]) -> str | None:
    """Return why these plans cannot run on this machine; None where they can."""
    if gpu is None:
        return "built on a machine without a GPU, where it cannot be run"
    if any(gpu.compute_capability not in plan.compute_capabilities for plan in plans):
        return (
            f"built for compute capability {', '.join(plans[0].compute_capabilities)} on a machine "
            f"whose GPU, {gpu.name}, has {gpu.compute_capability}"
        )
    return None


@dataclass(frozen=True)
class ParityTools:
    """What the checks need beside the engines: the reference, and what drives CUDA."""

    reference: Backend
    cuda: CudaLibraries


def parity_tools(gpu: Gpu | None, precision: str) -> ParityTools | None:
    """Open what the checks need, before a build that takes long; None where there is no GPU.

    Args:
        gpu: of this machine.
        precision: of the bundle.

    Raises:
        BackendError: ONNX Runtime or a CUDA package is missing; gives the command that installs it.
    """
    if gpu is None:
        return None
    try:
        return ParityTools(
            make_backend(REFERENCE.get(precision, "onnxruntime"), "cpu"), import_cuda()
        )
    except BackendError as error:
        raise BackendError(f"engines are checked once they are built, but {error}") from error


def check_parity(
    job: BuildJob,
    tools: ParityTools | None,
    plans: Sequence[BuiltPlan],
    profiles: Sequence[Profile],
    progress: ShareProgress,
) -> ParityReport:
    """Run every check of the plans that this machine can run.

    Args:
        job: of the build.
        tools: see :func:`parity_tools`.
        plans: what was built.
        profiles: of all axes of the bundle, for the masks of a clip.
        progress: is told the graph under way.

    Raises:
        ParityError: outputs, masks or layer types failed a check.
        BackendError: TensorRT, CUDA or ONNX Runtime failed.
    """
    reason = untestable_reason(job.gpu, plans)
    if reason is not None or tools is None:
        return ParityReport(reason)
    ordinal = job.settings.ordinal
    bundle, target, reference = job.bundle, job.settings.target, tools.reference
    checks: dict[str, tuple[CheckResult, ...]] = {}
    layers: dict[str, dict[str, int]] = {}
    with open_engines(job.trt, tools.cuda, _engines(job, plans), ordinal) as engines:
        for index, plan in enumerate(plans):
            progress(plan.graph, "parity", index / len(plans), None)
            graph = engines.graphs[plan.graph]
            assert isinstance(graph, TensorRtGraph)
            layers[plan.graph] = inspected_types(graph.layer_report())
            warn_of_lost_types(plan.types["all"], layers[plan.graph], bundle.precision, plan.graph)
            with reference.open(bundle, [plan.graph]) as expected:
                compared = compare_graph(
                    plan.graph, engines, expected, bundle.network, plan.profiles
                )
                checks[plan.graph] = tuple(compared)
        # One call reports the failed checks of all graphs in one message.
        require_all([result for own in checks.values() for result in own], target)
        progress("masks of a clip", "parity", 1.0, None)
        masks = compare_masks(bundle, PartialEngines(engines, reference), reference, profiles)
        require_all([masks], target)
    return ParityReport(None, {name: (*own, masks) for name, own in checks.items()}, layers)


def _engines(job: BuildJob, plans: Sequence[BuiltPlan]) -> list[Engine]:
    """Return the plans as engines to load. They were just built, so nothing checks them first."""
    logger = make_logger(job.trt, Messages())

    def engine(plan: BuiltPlan) -> Engine:
        def load(machine: EngineMachine) -> Any:
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
