"""Load engines: check a plan, then deserialise it. No other module deserialises.

NOT RUN with a GPU, because deserialising needs a driver. The tests run the refusals, TensorRT-RTX's
own refusal without a driver, and check every name and keyword against the real bindings.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from rvos_deploy.bundle.engine_sidecar import EngineSidecar
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.bundle.onnx_file import OnnxFile, address_of, external_slices, whole_model
from rvos_deploy.errors import BackendError
from rvos_deploy.files import read_regular_file
from rvos_deploy.runtime.backends.tensorrt.engine_checks import (
    EngineMachine,
    changed_plan,
    check_loadable,
    check_plan_size,
)

if TYPE_CHECKING:
    import tensorrt as trt


def load_engine(
    trt: Any,
    logger: trt.ILogger,
    bundle: Bundle,
    sidecar: EngineSidecar,
    machine: EngineMachine,
    *,
    allow_host_code: bool = False,
) -> trt.ICudaEngine:
    """Check a plan of a bundle completely, then deserialise it.

    Args:
        trt: the imported ``tensorrt`` or ``tensorrt_rtx``.
        logger: must outlive the engine.
        bundle: an opened bundle, whose own files have been hashed.
        sidecar: of the engine, as ``read_sidecar`` returns it.
        machine: that loads the engine.
        allow_host_code: accept engines that hold host code; only for plans that you trust.

    Raises:
        EngineError: a check failed; nothing was deserialised.
        BackendError: TensorRT refuses the plan.
    """
    check_loadable(bundle, sidecar, machine, allow_host_code=allow_host_code)
    plan = read_plan(bundle, sidecar)
    weights = bundle.graph_file(sidecar.graph) if sidecar.stripped else None
    return deserialize(trt, logger, plan, weights, allow_host_code=allow_host_code)


def read_plan(bundle: Bundle, sidecar: EngineSidecar) -> bytes:
    """Read a plan, and hash the bytes in memory, because the file may change after an earlier
    check.

    Raises:
        EngineError: the bytes are not those that the sidecar describes.
    """
    file = check_plan_size(bundle, sidecar)
    try:
        plan = read_regular_file(file, sidecar.plan_bytes)
    except OSError:
        raise changed_plan(bundle, sidecar) from None
    if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise changed_plan(bundle, sidecar)
    return plan


def deserialize(
    trt: Any,
    logger: trt.ILogger,
    plan: bytes,
    weights: OnnxFile | None,
    *,
    allow_host_code: bool = False,
) -> trt.ICudaEngine:
    """Deserialise a checked plan.

    Args:
        trt: the imported ``tensorrt`` or ``tensorrt_rtx``.
        logger: must outlive the engine.
        plan: the bytes of the plan.
        weights: the ONNX file whose weights a stripped plan needs; None for complete plans.
        allow_host_code: accept engines that hold host code; only for plans that you trust.

    Raises:
        BackendError: TensorRT refuses the plan; its log says why.
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


def _refit(trt: Any, logger: trt.ILogger, engine: trt.ICudaEngine, weights: OnnxFile) -> None:
    """Refit an engine that was built without weights with the weights of the hashed ONNX file."""
    content = weights.read()
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if content.external and not hasattr(parser, "load_model_proto"):
        # TensorRT 10.3 and 10.9 lack it; 10.16 has it.
        import onnx

        accepted = parser.refit_from_bytes(whole_model(onnx, content).SerializeToString())
    elif content.external:
        import onnx

        model = onnx.load_model_from_string(content.model)
        accepted = parser.load_model_proto(content.model)
        for name, data in external_slices(model, content).items():
            accepted = accepted and parser.load_initializer(name, address_of(data), data.nbytes)
        accepted = accepted and parser.refit_model_proto()
    else:
        accepted = parser.refit_from_bytes(content.model)
    if not (accepted and refitter.refit_cuda_engine()):
        missing = ", ".join(refitter.get_missing_weights()[:3]) or "none named"
        raise BackendError(
            f"{weights.path.name} does not give the stripped engine all of its weights (missing: "
            f"{missing}); build again without --strip-weights"
        )
