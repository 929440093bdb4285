"""The JSON beside a plan: what the engine is and how it was proven. Neither TensorRT nor torch.

``rvos_deploy.runtime.backends.tensorrt.engine_checks`` decides whether a plan may be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rvos_deploy.bundle.manifest import Count, Line, Sha256, reason
from rvos_deploy.errors import BundleError
from rvos_deploy.files import read_regular_file
from rvos_deploy.graph_io.graph_spec import Name, Precision, Size

SCHEMA = "rvos-deploy/engine/1"
ENGINES = "engines"
_WHOLE = "a sidecar as build-engine wrote it"
TARGETS = ("tensorrt", "tensorrt-rtx")
MAXIMUM_SIDECAR_BYTES = 8 << 20
MAXIMUM_PLAN_BYTES = 16 << 30

Profile = Mapping[str, tuple[Size, Size, Size]]
"""Axis name to its (min, opt, max) sizes."""
_Words = Annotated[tuple[Line, ...], Meta(max_length=256)]
_Facts = Annotated[Mapping[Line, Any], Meta(max_length=256)]


def supports(profile: Profile, axes: Mapping[str, int]) -> bool:
    """Whether these sizes lie within the profile."""
    return all(
        name in profile and profile[name][0] <= size <= profile[name][2]
        for name, size in axes.items()
    )


class EngineError(BundleError):
    """An engine that must not be loaded.

    Args:
        found: what is there.
        needed: what would have to be there.
        command: what to run; nearly always the rebuild.
    """

    def __init__(self, found: str, needed: str, command: str) -> None:
        super().__init__(f"{found}; needed: {needed}; run: {command}")
        self.found, self.needed, self.command = found, needed, command


@dataclass(frozen=True)
class EngineSidecar:
    """Everything that is known of one plan.

    Args:
        graph: which graph of the bundle.
        target: ``tensorrt`` or ``tensorrt-rtx``.
        precision: of the bundle it was built from.
        created: UTC, ISO 8601.
        plan_sha256: of the plan file.
        plan_bytes: its size.
        onnx_sha256: by file name, of the ONNX file and of its ``.data`` where there is one.
        tensorrt_version: that built it; it loads with this one only (but see version_compatible).
        compute_capabilities: GPU architectures it was built for, for example ("8.9",).
        gpu: name of the GPU it was built on; None where there was none (TensorRT-RTX).
        version_compatible: later TensorRT versions of the same major may load it. It then holds
            host code, so loading must be allowed explicitly.
        hardware_compatible: it runs on Ampere and later.
        stripped: without weights; they come from the ONNX when it is loaded.
        profiles: shapes that it accepts.
        options: the ``build-engine`` options that differ from the defaults, to build it again.
        settings: workspace, optimisation level and the like, for the record.
        layers: output types of the network's and the engine's layers.
        plugin_layers: deformable-attention plugin layers in it.
        build_seconds: the builder's time.
        versions: of Python and packages.
        parity: checks against ONNX Runtime and J&F, as ``verify`` records them; None: not run.
        parity_reason: why parity is None.
    """

    graph: Name
    target: Line
    precision: Precision
    created: Line
    plan_sha256: Sha256
    plan_bytes: Annotated[int, Meta(ge=0, le=MAXIMUM_PLAN_BYTES)]
    onnx_sha256: Annotated[Mapping[Line, Sha256], Meta(max_length=16)]
    tensorrt_version: Line
    compute_capabilities: _Words
    gpu: Line | None
    version_compatible: bool
    hardware_compatible: bool
    stripped: bool
    profiles: Annotated[tuple[Profile, ...], Meta(min_length=1, max_length=64)]
    options: _Words
    settings: _Facts
    layers: _Facts
    plugin_layers: Count
    build_seconds: float
    versions: Annotated[Mapping[Line, Line], Meta(max_length=64)]
    parity: Annotated[tuple[_Facts, ...], Meta(max_length=10_000)] | None
    parity_reason: Line | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def parity_passed(self) -> bool:
        """Whether checks were run and every one passed."""
        return bool(self.parity) and all(check.get("passed") is True for check in self.parity or ())


def engine_folder(bundle: Path, target: str) -> Path:
    """Where a bundle's engines for a target lie."""
    return bundle / ENGINES / target


def plan_file(bundle: Path, target: str, graph: str) -> Path:
    """The plan of a graph."""
    return engine_folder(bundle, target) / f"{graph}.plan"


def sidecar_file(plan: Path) -> Path:
    """The sidecar of a plan: ``backbone.plan`` has ``backbone.plan.json``."""
    return plan.with_name(plan.name + ".json")


def rebuild_command(bundle: Path, target: str, options: tuple[str, ...] = ()) -> str:
    """The command that builds the engines of a bundle again."""
    return " ".join(["rvos-deploy build-engine", str(bundle), "--target", target, *options])


def read_sidecar(bundle: Path, target: str, graph: str) -> EngineSidecar:
    """Read and check the form of a sidecar; neither the plan nor the ONNX is looked at.

    Raises:
        EngineError: it is missing, damaged, of another schema, or that of another engine.
    """
    plan, command = plan_file(bundle, target, graph), rebuild_command(bundle, target)
    file = sidecar_file(plan)
    if not os.path.lexists(file):
        found = f"{plan} has no sidecar" if plan.is_file() else f"no {target} engine of {graph}"
        raise EngineError(found, f"{file}", command)
    try:
        raw = read_regular_file(file, MAXIMUM_SIDECAR_BYTES)
        head = msgspec.json.decode(raw, type=_Head)
        if head.schema != SCHEMA:
            raise EngineError(f"{file} has schema {head.schema}", SCHEMA, command)
        sidecar = _decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError(f"{file} is damaged ({reason(error)})", _WHOLE, command) from None
    except OSError as error:
        raise EngineError(f"{file} cannot be read ({error.strerror})", _WHOLE, command) from None
    if (sidecar.graph, sidecar.target) != (graph, target):
        raise EngineError(
            f"{file} belongs to {sidecar.graph} for {sidecar.target}",
            f"{graph} for {target}",
            command,
        )
    return sidecar


class _Head(msgspec.Struct):
    """What is read of a sidecar before its form."""

    schema: Line


def _decode(raw: bytes) -> EngineSidecar:
    """Raises ValidationError when it is not what ``build-engine`` writes. Unknown keys are refused:
    they might say why an engine must not be loaded.
    """
    sidecar = msgspec.json.decode(raw, type=EngineSidecar)
    known = {"schema", *(field.name for field in fields(EngineSidecar))}
    unknown = sorted(set(msgspec.json.decode(raw, type=dict[str, msgspec.Raw])) - known)
    if unknown:
        raise msgspec.ValidationError(f"unknown key {unknown[0]}")
    for profile in sidecar.profiles:
        for axis, (minimum, optimum, maximum) in profile.items():
            if not minimum <= optimum <= maximum or not axis.isidentifier():
                raise msgspec.ValidationError(f"profile {axis} is not in order, min <= opt <= max")
    for check in sidecar.parity or ():
        j_and_f = check.get("j_and_f", 0.0)
        if isinstance(j_and_f, bool) or not isinstance(j_and_f, (int, float)):
            raise msgspec.ValidationError("j_and_f of a parity check is no number")
    return sidecar


def list_engines(bundle: Path) -> list[EngineSidecar | EngineError]:
    """The sidecars of all engines in a bundle, or why one cannot be read; plans stay closed."""
    found: list[EngineSidecar | EngineError] = []
    for target in TARGETS:
        for plan in sorted(engine_folder(bundle, target).glob("*.plan")):
            try:
                found.append(read_sidecar(bundle, target, plan.name.removesuffix(".plan")))
            except EngineError as error:
                found.append(error)
    return found


def format_profile(profile: Profile) -> str:
    """As ``--profile`` takes it: ``H=32:256:256,E=1:2:8``."""
    return ",".join(f"{axis}={':'.join(map(str, sizes))}" for axis, sizes in profile.items())
