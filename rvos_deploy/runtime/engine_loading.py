"""Plans into engines, after every check: the only place that deserialises.

NOT RUN with a GPU: deserialising needs a driver. What was run: the refusals, TensorRT-RTX's own
refusal without a driver, and every name and keyword used here against the real bindings.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.bundle import Bundle
from rvos_deploy.runtime.engine_checks import EngineMachine, check_loadable
from rvos_deploy.runtime.engine_sidecar import (
    EngineError,
    EngineSidecar,
    plan_file,
    rebuild_command,
)

if TYPE_CHECKING:
    import tensorrt as trt


def load_engine(
    trt: Any,
    logger: trt.ILogger,
    bundle: Bundle,
    sidecar: EngineSidecar,
    compute_capability: str,
    *,
    allow_host_code: bool = False,
) -> trt.ICudaEngine:
    """Check everything, then deserialise a plan of a bundle.

    Args:
        trt: the imported ``tensorrt`` or ``tensorrt_rtx``.
        logger: must outlive the engine.
        bundle: opened, so its own files have been hashed.
        sidecar: of the engine, as ``read_sidecar`` gives it.
        compute_capability: of the GPU here, for example "8.9".
        allow_host_code: take engines that hold host code; for plans that you trust.

    Raises:
        EngineError: something does not hold; nothing was deserialised.
        BackendError: TensorRT refuses the plan.
    """
    machine = EngineMachine(trt.__version__, compute_capability)
    check_loadable(bundle, sidecar, machine, allow_host_code=allow_host_code)
    plan = read_plan(bundle, sidecar)
    weights = bundle.graph_file(sidecar.graph) if sidecar.stripped else None
    return deserialize(trt, logger, plan, weights, allow_host_code=allow_host_code)


def read_plan(bundle: Bundle, sidecar: EngineSidecar) -> bytes:
    """The plan's bytes, hashed once they are in memory: the file may change after its check.

    Raises:
        EngineError: they are not those of the sidecar.
    """
    file = plan_file(bundle.path, sidecar.target, sidecar.graph)
    plan = file.read_bytes()
    if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise EngineError(
            f"{file} was changed since it was built (its sha256 differs)",
            f"sha256 {sidecar.plan_sha256[:12]}...",
            rebuild_command(bundle.path, sidecar.target, sidecar.options),
        )
    return plan


def deserialize(
    trt: Any,
    logger: trt.ILogger,
    plan: bytes,
    weights: Path | None,
    *,
    allow_host_code: bool = False,
) -> trt.ICudaEngine:
    """Plan bytes that were checked -> engine; with ``weights``, put in from that ONNX.

    Raises:
        BackendError: TensorRT refuses; its log says why.
    """
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = allow_host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot deserialise the plan; check the GPU's driver "
            "with nvidia-smi, then build again with rvos-deploy build-engine"
        )
    if weights is not None:
        _refit(trt, logger, engine, weights)
    return engine


def _refit(trt: Any, logger: trt.ILogger, engine: trt.ICudaEngine, weights: Path) -> None:
    """Put the ONNX's weights into an engine that was built without."""
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not (parser.refit_from_file(str(weights)) and refitter.refit_cuda_engine()):
        missing = ", ".join(refitter.get_missing_weights()[:3]) or "none named"
        raise BackendError(
            f"{weights.name} does not give the stripped engine all of its weights (missing: "
            f"{missing}); build again without --strip-weights"
        )
