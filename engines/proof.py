"""What a GPU is needed for after a build: layer types of the engines, their numbers, their masks.

NOT RUN: it needs a GPU. Its parts are tested: the comparison with ONNX Runtime in the engine's
place, the reading of the inspector's JSON with samples of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from rvos_deploy.engines.plan_runner import PlanRunner
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.parity.verification import Verdict
from rvos_deploy.runtime.backends.registry import make_backend

REFERENCE = {"bf16": "bf16-reference"}
"""Back end that engines are compared with, by precision; onnxruntime for the others."""

Say = Callable[[str, str, float, float | None], None]


@dataclass(frozen=True)
class Proof:
    """Results by graph; where ``reason`` is set, nothing was run, and it says why."""

    reason: str | None
    checks: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
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
    logger = make_logger(trt, Messages())
    checks: dict[str, tuple[Verdict, ...]] = {}
    layers: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        runners: dict[str, PlanRunner] = {}
        for index, plan in enumerate(plans):
            say(plan.graph, "parity", index / len(plans), None)
            spec, onnx_file = bundle.graphs[plan.graph], bundle.graph_file(plan.graph)
            runner = PlanRunner(
                trt,
                logger,
                spec,
                plan.path,
                onnx_file if settings.strip_weights else None,
                plan.profiles,
                allow_host_code=settings.version_compatible,
            )
            stack.enter_context(runner)
            runners[plan.graph] = runner
            layers[plan.graph] = inspected_types(runner.layer_report())
            check_engine(plan.types["all"], layers[plan.graph], bundle.precision, plan.graph)
            with reference.runner(spec, onnx_file) as expected:
                checks[plan.graph] = tuple(compare_graph(runner, expected, plan.profiles))
        # All at once, so that one message tells every check that failed.
        require_all([v for verdicts in checks.values() for v in verdicts], settings.target)
        say("masks of a clip", "parity", 1.0, None)
        masks = compare_masks(bundle, PartlyEngines(runners, reference), reference, profiles)
        require_all([masks], settings.target)
    return Proof(None, {name: (*own, masks) for name, own in checks.items()}, layers)
