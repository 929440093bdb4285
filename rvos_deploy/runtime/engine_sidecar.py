"""The JSON beside a plan: what the engine is and how it was proven. Neither TensorRT nor torch.

Whether the plan may be loaded is decided by :mod:`rvos_deploy.runtime.engine_checks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rvos_deploy.errors import BundleError

SCHEMA = "rvos-deploy/engine/1"
ENGINES = "engines"
_WHOLE = "a sidecar as build-engine wrote it"
TARGETS = ("tensorrt", "tensorrt-rtx")
Profile = Mapping[str, tuple[int, int, int]]
"""Axis name to its (min, opt, max) sizes."""


def takes(profile: Profile, axes: Mapping[str, int]) -> bool:
    """Whether these sizes lie within the profile."""
    return all(profile[name][0] <= size <= profile[name][2] for name, size in axes.items())


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

    graph: str
    target: str
    precision: str
    created: str
    plan_sha256: str
    plan_bytes: int
    onnx_sha256: Mapping[str, str]
    tensorrt_version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    version_compatible: bool
    hardware_compatible: bool
    stripped: bool
    profiles: tuple[Profile, ...]
    options: tuple[str, ...]
    settings: Mapping[str, Any]
    layers: Mapping[str, Any]
    plugin_layers: int
    build_seconds: float
    versions: Mapping[str, str]
    parity: tuple[Mapping[str, Any], ...] | None
    parity_reason: str | None

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


def onnx_files(bundle: Path, graph: str) -> list[Path]:
    """The files that a graph's ONNX consists of."""
    file = bundle / f"{graph}.onnx"
    data = file.with_name(file.name + ".data")
    return [file, data] if data.is_file() else [file]


def read_sidecar(bundle: Path, target: str, graph: str) -> EngineSidecar:
    """Read and check the form of a sidecar; neither the plan nor the ONNX is looked at.

    Raises:
        EngineError: it is missing, damaged, of another schema, or that of another engine.
    """
    plan, command = plan_file(bundle, target, graph), rebuild_command(bundle, target)
    file = sidecar_file(plan)
    if not file.is_file():
        found = f"{plan} has no sidecar" if plan.is_file() else f"no {target} engine of {graph}"
        raise EngineError(found, f"{file}", command)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        schema = values.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineError(f"{file} is damaged", _WHOLE, command) from None
    if schema != SCHEMA:
        raise EngineError(f"{file} has schema {schema}", SCHEMA, command)
    sidecar = _sidecar(values, file, command)
    if (sidecar.graph, sidecar.target) != (graph, target):
        raise EngineError(
            f"{file} belongs to {sidecar.graph} for {sidecar.target}",
            f"{graph} for {target}",
            command,
        )
    return sidecar


def _sidecar(values: dict[str, Any], file: Path, command: str) -> EngineSidecar:
    try:
        for name in ("version_compatible", "hardware_compatible", "stripped"):
            if not isinstance(values[name], bool):
                raise TypeError(f"{name} is neither true nor false")
        if not values["profiles"]:
            raise ValueError("no profiles")
        return EngineSidecar(
            **{
                **values,
                "onnx_sha256": dict(values["onnx_sha256"]),
                "compute_capabilities": tuple(map(str, values["compute_capabilities"])),
                "profiles": tuple(_profile(profile) for profile in values["profiles"]),
                "options": tuple(map(str, values["options"])),
                "parity": _parity(values["parity"]),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{file} is damaged ({error})", _WHOLE, command) from None


def _profile(values: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    profile: dict[str, tuple[int, int, int]] = {}
    for axis, (minimum, optimum, maximum) in values.items():
        profile[axis] = (int(minimum), int(optimum), int(maximum))
    return profile


def _parity(values: Any) -> tuple[dict[str, Any], ...] | None:
    return None if values is None else tuple(dict(check) for check in values)


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
