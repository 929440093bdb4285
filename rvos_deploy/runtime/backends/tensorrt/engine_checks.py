"""Decide whether an engine may be loaded, right before its plan is deserialised. No TensorRT
needed.

A plan is executable code. So nothing is deserialised before every check has passed: the plan's
hash, the hash of the ONNX that it was built from, the TensorRT version, the GPU's architecture and
model, and the parity results against ONNX Runtime. What cannot be established is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.bundle.engine_sidecar import (
    EngineError,
    EngineSidecar,
    format_profile,
    plan_file,
    rebuild_command,
)
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.files import sha256_file

HARDWARE_COMPATIBLE_FROM = "8.0"
"""Ampere, the oldest architecture that runs ``--hardware-compatible`` engines."""


@dataclass(frozen=True)
class EngineMachine:
    """The machine that loads an engine: the library's version, and the GPU's compute capability
    ("8.9") and name, as CUDA gives them.
    """

    tensorrt_version: str
    compute_capability: str
    gpu: str


def check_plan(bundle: Bundle, sidecar: EngineSidecar) -> None:
    """Check that a plan and its ONNX are those that the sidecar describes.

    Raises:
        EngineError: a file is missing or has another hash.
    """
    plan = check_plan_size(bundle, sidecar)
    if sha256_file(plan) != sidecar.plan_sha256:
        raise changed_plan(bundle, sidecar)
    check_source(bundle, sidecar)


def check_plan_size(bundle: Bundle, sidecar: EngineSidecar) -> Path:
    """Return the path of a plan, which exists and has the size that its sidecar says.

    Raises:
        EngineError: the file is missing or has another size.
    """
    plan = plan_file(bundle.path, sidecar.target, sidecar.graph)
    if not plan.is_file():
        command = rebuild_command(bundle.path, sidecar.target, sidecar.options)
        raise EngineError(f"{plan} is missing", "the plan that its sidecar describes", command)
    if plan.stat().st_size != sidecar.plan_bytes:
        raise changed_plan(bundle, sidecar)
    return plan


def changed_plan(bundle: Bundle, sidecar: EngineSidecar) -> EngineError:
    """Return the error of a plan that is not the one that its sidecar describes."""
    return EngineError(
        f"{plan_file(bundle.path, sidecar.target, sidecar.graph)} was changed since it was built "
        "(its sha256 differs)",
        f"sha256 {sidecar.plan_sha256[:12]}...",
        rebuild_command(bundle.path, sidecar.target, sidecar.options),
    )


def check_source(bundle: Bundle, sidecar: EngineSidecar) -> None:
    """Check that an engine was built from the graph that the bundle's manifest describes.

    Raises:
        EngineError: a file of the graph has another hash.
    """
    now = {name: entry.sha256 for name, entry in bundle.onnx_entries(sidecar.graph).items()}
    if now != dict(sidecar.onnx_sha256):
        changed = sorted(
            name
            for name in {*now, *sidecar.onnx_sha256}
            if now.get(name) != sidecar.onnx_sha256.get(name)
        )
        raise EngineError(
            f"{plan_file(bundle.path, sidecar.target, sidecar.graph)} was built from another "
            f"{', '.join(changed)} (its sha256 differs)",
            "an engine of the bundle's present graph",
            rebuild_command(bundle.path, sidecar.target, sidecar.options),
        )


def check_loadable(
    bundle: Bundle, sidecar: EngineSidecar, machine: EngineMachine, *, allow_host_code: bool = False
) -> None:
    """Check everything that must hold before a plan is deserialised, except the plan's hash.

    ``engine_loading.read_plan`` hashes the very bytes that are deserialised.

    Args:
        bundle: an opened bundle.
        sidecar: of the engine.
        machine: that loads the engine.
        allow_host_code: accept engines that hold host code (version-compatible ones).

    Raises:
        EngineError: a check failed; gives ``found``, ``needed`` and the command that rebuilds.
    """
    check_plan_size(bundle, sidecar)
    check_source(bundle, sidecar)
    command = rebuild_command(bundle.path, sidecar.target, sidecar.options)
    name = f"the {sidecar.target} engine of {sidecar.graph}"
    if sidecar.version_compatible and not allow_host_code:
        raise EngineError(
            f"{name} holds host code (built with --version-compatible)",
            "an engine without host code, or allow_host_code=True from whoever trusts the plan",
            command.replace(" --version-compatible", ""),
        )
    if not _version_fits(sidecar, machine.tensorrt_version):
        raise EngineError(
            f"{name} was built with TensorRT {sidecar.tensorrt_version}",
            f"TensorRT {machine.tensorrt_version}, which is installed here",
            command,
        )
    if not _gpu_fits(sidecar, machine.compute_capability):
        raise EngineError(
            f"{name} was built for compute capability {', '.join(sidecar.compute_capabilities)}",
            f"{machine.compute_capability}, which the GPU here has",
            _command_for_gpu(bundle, sidecar, machine),
        )
    if not _model_fits(sidecar, machine.gpu):
        raise EngineError(
            f"{name} was built on {sidecar.gpu or 'an unknown GPU'}, whose kernels TensorRT chose "
            "for that model alone",
            f"{machine.gpu}, which is here (engines of --hardware-compatible run on both)",
            command,
        )
    require_parity(bundle, sidecar)


def require_parity(bundle: Bundle, sidecar: EngineSidecar) -> None:
    """Check that an engine was compared with ONNX Runtime, and that every check passed.

    Raises:
        EngineError: a check failed, or none was run.
    """
    name = f"the {sidecar.target} engine of {sidecar.graph}"
    command = rebuild_command(bundle.path, sidecar.target, sidecar.options)
    needed = "checks against ONNX Runtime, all passed (on the machine with the GPU)"
    if not sidecar.parity:
        reason = sidecar.parity_reason or "no reason recorded"
        raise EngineError(f"{name} has no parity results ({reason})", needed, command)
    failed = [str(c.get("name")) for c in sidecar.parity if c.get("passed") is not True]
    if failed:
        raise EngineError(
            f"{name} failed {len(failed)} of {len(sidecar.parity)} parity checks ({failed[0]})",
            needed,
            command,
        )


def _version_fits(sidecar: EngineSidecar, installed: str) -> bool:
    if sidecar.tensorrt_version == installed:
        return True
    built, here = _numbers(sidecar.tensorrt_version), _numbers(installed)
    return sidecar.version_compatible and built[:1] == here[:1] and here >= built


def _gpu_fits(sidecar: EngineSidecar, capability: str) -> bool:
    if capability in sidecar.compute_capabilities:
        return True
    return sidecar.hardware_compatible and _numbers(capability) >= _numbers(
        HARDWARE_COMPATIBLE_FROM
    )


def _model_fits(sidecar: EngineSidecar, gpu: str) -> bool:
    """Compare the models: those of one compute capability differ in multiprocessors and memory.

    TensorRT itself loads such a plan with a warning only, and says that it may fail. Plans of
    TensorRT-RTX and hardware-compatible ones are made for several models.
    """
    if sidecar.target != "tensorrt" or sidecar.hardware_compatible:
        return True
    return sidecar.gpu == gpu


def _command_for_gpu(bundle: Bundle, sidecar: EngineSidecar, machine: EngineMachine) -> str:
    """Return the command that builds for this GPU. TensorRT-RTX must be told which; TensorRT uses
    it.
    """
    options = list(sidecar.options)
    if sidecar.target == "tensorrt-rtx":
        while "--compute-capability" in options:
            at = options.index("--compute-capability")
            del options[at : at + 2]
        options += ["--compute-capability", machine.compute_capability]
    return rebuild_command(bundle.path, sidecar.target, tuple(options))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading whole numbers of a dotted version."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def no_profile(bundle: Path, sidecar: EngineSidecar, axes: Mapping[str, int]) -> EngineError:
    """Return the error of sizes that no profile supports; its command builds an engine that does.

    Args:
        bundle: the bundle's folder, for the command.
        sidecar: of the engine.
        axes: sizes by name, as ``GraphSpec.bind`` returns them.
    """
    wider = {
        name: (min(low, axes.get(name, low)), best, max(high, axes.get(name, high)))
        for name, (low, best, high) in sidecar.profiles[0].items()
    }
    options = (*sidecar.options, "--profile", format_profile(wider))
    return EngineError(
        f"the {sidecar.target} engine of {sidecar.graph} supports "
        + " or ".join(map(format_profile, sidecar.profiles)),
        ",".join(f"{name}={size}" for name, size in axes.items()),
        rebuild_command(bundle, sidecar.target, options),
    )
