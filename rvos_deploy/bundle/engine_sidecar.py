"""Read the JSON file beside a plan, which describes the engine and its parity checks.

This module imports neither TensorRT nor torch. ``runtime/backends/tensorrt/engine_checks.py``
decides whether a plan may be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from rvos_deploy.bundle.manifest import Count, Line, Sha256, plain, reason
from rvos_deploy.errors import BundleError
from rvos_deploy.files import read_regular_file
from rvos_deploy.graph_io.graph_spec import Name, Precision, Size

SCHEMA: Final = "rvos-deploy/engine/1"
ENGINES = "engines"
_NEEDED = "a sidecar as build-engine writes it"
Target = Literal["tensorrt", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = get_args(Target)
MAXIMUM_SIDECAR_BYTES = 8 << 20
MAXIMUM_PLAN_BYTES = 16 << 30

Profile = Mapping[Name, tuple[Size, Size, Size]]
"""Axis name to its (min, opt, max) sizes."""
_Words = Annotated[tuple[Line, ...], Meta(max_length=256)]
_Facts = Annotated[Mapping[Line, Any], Meta(max_length=256)]


def supports(profile: Profile, axes: Mapping[str, int]) -> bool:
    """Tell whether these sizes lie within the profile."""
    return all(
        name in profile and profile[name][0] <= size <= profile[name][2]
        for name, size in axes.items()
    )


class EngineError(BundleError):
    """Refuse an engine that must not be loaded.

    Args:
        found: the state that was found.
        needed: the state that is needed.
        command: the command that repairs it, nearly always a new build.
    """

    def __init__(self, found: str, needed: str, command: str) -> None:
        super().__init__(f"{found}; needed: {needed}; run: {command}")
        self.found, self.needed, self.command = found, needed, command


class EngineSidecar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one plan.

    Unknown fields are refused, because they might say why an engine must not be loaded.

    Args:
        schema: schema of this file.
        graph: name of the graph in the bundle.
        target: ``tensorrt`` or ``tensorrt-rtx``.
        precision: precision of the bundle that the engine was built from.
        created: UTC, ISO 8601.
        plan_sha256: hash of the plan file.
        plan_bytes: size of the plan file.
        onnx_sha256: hashes of the ONNX file and of its ``.data`` where there is one, by file name.
        tensorrt_version: TensorRT that built the plan, and the only one that may load it, unless
            the plan is version_compatible.
        compute_capabilities: GPU architectures that the plan was built for, for example ("8.9",).
        gpu: name of the GPU that the plan was built on; None: built without one (TensorRT-RTX).
        version_compatible: whether later TensorRT versions of the same major may load the plan. It
            then holds host code, so loading must be allowed explicitly.
        hardware_compatible: whether the plan runs on Ampere and later.
        stripped: whether the plan lacks the weights, which then come from the ONNX on loading.
        profiles: shapes that the engine accepts, at least one.
        options: the ``build-engine`` options that differ from the defaults, to build it again.
        settings: workspace, optimisation level and the like, for the record.
        layers: output types of the network's and the engine's layers.
        plugin_layers: number of deformable-attention plugin layers.
        build_seconds: time that the builder took.
        versions: versions of Python and packages.
        parity: checks against ONNX Runtime and J&F, as ``verify`` records them; None: not run.
        parity_reason: why parity is None.
    """

    schema: Literal["rvos-deploy/engine/1"] = SCHEMA
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

    def __post_init__(self) -> None:
        for profile in self.profiles:
            for axis, (minimum, optimum, maximum) in profile.items():
                if not minimum <= optimum <= maximum:
                    raise ValueError(f"profile {axis} is not in order, min <= opt <= max")
        for check in self.parity or ():
            j_and_f = check.get("j_and_f", 0.0)
            if isinstance(j_and_f, bool) or not isinstance(j_and_f, (int, float)):
                raise ValueError("j_and_f of a parity check is no number")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return plain(self)

    @property
    def parity_passed(self) -> bool:
        """Tell whether checks were run and every one passed."""
        return bool(self.parity) and all(check.get("passed") is True for check in self.parity or ())


def engine_folder(bundle: Path, target: str) -> Path:
    """Return the folder of a bundle's engines for a target."""
    return bundle / ENGINES / target


def plan_file(bundle: Path, target: str, graph: str) -> Path:
    """Return the path of a graph's plan."""
    return engine_folder(bundle, target) / f"{graph}.plan"


def sidecar_file(plan: Path) -> Path:
    """Return the path of a plan's sidecar: ``backbone.plan`` has ``backbone.plan.json``."""
    return plan.with_name(plan.name + ".json")


def rebuild_command(bundle: Path, target: str, options: tuple[str, ...] = ()) -> str:
    """Return the command that builds the engines of a bundle again."""
    return " ".join(["rvos-deploy build-engine", str(bundle), "--target", target, *options])


def read_sidecar(bundle: Path, target: str, graph: str) -> EngineSidecar:
    """Read a sidecar and check its form, without opening the plan or the ONNX.

    Raises:
        EngineError: the sidecar is missing, is damaged, has another schema, or describes another
            engine.
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
        sidecar = msgspec.json.decode(raw, type=EngineSidecar)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError(f"{file} is damaged ({reason(error)})", _NEEDED, command) from None
    except OSError as error:
        raise EngineError(f"{file} cannot be read ({error.strerror})", _NEEDED, command) from None
    if (sidecar.graph, sidecar.target) != (graph, target):
        raise EngineError(
            f"{file} belongs to {sidecar.graph} for {sidecar.target}",
            f"{graph} for {target}",
            command,
        )
    return sidecar


class _Head(msgspec.Struct):
    """The part of a sidecar that is read first, because another schema has other fields."""

    schema: Line


def list_engines(bundle: Path) -> list[EngineSidecar | EngineError]:
    """Read the sidecars of all engines in a bundle; an unreadable sidecar gives its error."""
    found: list[EngineSidecar | EngineError] = []
    for target in TARGETS:
        for plan in sorted(engine_folder(bundle, target).glob("*.plan")):
            try:
                found.append(read_sidecar(bundle, target, plan.name.removesuffix(".plan")))
            except EngineError as error:
                found.append(error)
    return found


def format_profile(profile: Profile) -> str:
    """Format a profile as ``--profile`` reads it: ``H=32:256:256,E=1:2:8``."""
    return ",".join(f"{axis}={':'.join(map(str, sizes))}" for axis, sizes in profile.items())
