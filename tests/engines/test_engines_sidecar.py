"""Test which engines may be loaded: every refusal gives what was found, what is needed, and the
command.

The plans here are meaningless bytes, because every refusal comes before deserialising.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from rvos_deploy.bundle.engine_sidecar import (
    EngineError,
    EngineSidecar,
    list_engines,
    plan_file,
    read_sidecar,
    sidecar_file,
)
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.errors import RvosError
from rvos_deploy.json_file import write_json
from rvos_deploy.runtime.backends.tensorrt import engine_loading
from rvos_deploy.runtime.backends.tensorrt.engine_checks import (
    EngineMachine,
    check_loadable,
    check_plan,
    no_profile,
)
from rvos_deploy.runtime.backends.tensorrt.graph import Engine

PLAN = b"not really a plan"
VERSION = "11.4.0.106"
GPU = "NVIDIA GeForce RTX 4090"
MACHINE = EngineMachine(VERSION, "8.9", GPU)
PASSED = ({"name": "mask_head H32 mask_logits", "passed": True, "max_abs": 1e-6},)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle of links, so that engines can be put into it."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    return open_bundle(folder)


@pytest.fixture
def put(bundle: Bundle) -> Callable[..., EngineSidecar]:
    """Write a plan and its sidecar; fields of the sidecar may be given."""

    def write(**fields: Any) -> EngineSidecar:
        sidecar = EngineSidecar(
            graph="mask_head",
            target="tensorrt",
            precision="fp32",
            created="2026-11-24T12:00:00Z",
            plan_sha256=hashlib.sha256(PLAN).hexdigest(),
            plan_bytes=len(PLAN),
            onnx_sha256={n: e.sha256 for n, e in bundle.onnx_entries("mask_head").items()},
            tensorrt_version=VERSION,
            compute_capabilities=("8.9",),
            gpu=GPU,
            version_compatible=False,
            hardware_compatible=False,
            stripped=False,
            profiles=({"H": (32, 128, 128), "W": (32, 224, 224), "E": (1, 2, 8)},),
            options=("--workspace", "512"),
            settings={},
            layers={},
            plugin_layers=0,
            build_seconds=1.5,
            versions={},
            parity=PASSED,
            parity_reason=None,
        )
        sidecar = msgspec.structs.replace(sidecar, **fields)
        plan = plan_file(bundle.path, sidecar.target, sidecar.graph)
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_bytes(PLAN)
        write_json(sidecar_file(plan), sidecar.as_dict())
        return sidecar

    return write


def refusal(bundle: Bundle, machine: EngineMachine = MACHINE, **options: bool) -> EngineError:
    """What loading the only engine of a bundle is refused with."""
    (engine,) = list_engines(bundle.path)
    assert isinstance(engine, EngineSidecar)
    with pytest.raises(EngineError) as error:
        check_loadable(bundle, engine, machine, **options)
    assert isinstance(error.value, RvosError)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    for part in (error.value.found, error.value.needed, f"run: {error.value.command}"):
        assert part in str(error.value)
    return error.value


def rebuild(bundle: Bundle, options: str = " --workspace 512", target: str = "tensorrt") -> str:
    return f"rvos-deploy build-engine {bundle.path} --target {target}{options}"


def test_a_valid_engine_is_accepted(bundle: Bundle, put: Callable[..., EngineSidecar]) -> None:
    written = put()
    read = read_sidecar(bundle.path, "tensorrt", "mask_head")
    assert read == written
    assert read.parity_passed
    check_loadable(bundle, read, MACHINE)
    assert engine_loading.read_plan(bundle, read) == PLAN


def test_a_changed_plan_is_refused(bundle: Bundle, put: Callable[..., EngineSidecar]) -> None:
    sidecar = put()
    plan = plan_file(bundle.path, "tensorrt", "mask_head")
    for content in (PLAN[:-1] + b"N", PLAN + b"\0"):
        plan.write_bytes(content)
        for check in (check_plan, engine_loading.read_plan):
            with pytest.raises(EngineError) as caught:
                check(bundle, sidecar)
            error = caught.value
            assert error.found == f"{plan} was changed since it was built (its sha256 differs)"
            assert error.command == rebuild(bundle)
    plan.unlink()
    with pytest.raises(EngineError, match=r"mask_head\.plan is missing"):
        check_plan(bundle, sidecar)


def test_a_plan_that_changes_after_its_check_is_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar]
) -> None:
    sidecar = put()
    check_loadable(bundle, sidecar, MACHINE)
    plan_file(bundle.path, "tensorrt", "mask_head").write_bytes(b"not really a PLAN")
    with pytest.raises(EngineError, match="was changed since it was built"):
        engine_loading.read_plan(bundle, sidecar)


def test_another_onnx_is_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar], resign: Callable[..., None]
) -> None:
    put()
    file = bundle.graph_file("mask_head").path
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b"\0")
    resign(bundle.path)
    error = refusal(open_bundle(bundle.path))
    assert "was built from another mask_head.onnx (its sha256 differs)" in error.found
    assert error.command == rebuild(bundle)
    # External weights belong to it: a new .data file counts as much as a changed one.
    file.write_bytes(content)
    file.with_name("mask_head.onnx.data").write_bytes(b"weights")
    resign(bundle.path, "mask_head.onnx.data")
    assert "another mask_head.onnx.data" in refusal(open_bundle(bundle.path)).found


@pytest.mark.parametrize("version", ["11.3.0.99", "11.4.1.1", "12.0.0.1"])
def test_another_tensorrt_is_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar], version: str
) -> None:
    put()
    error = refusal(bundle, EngineMachine(version, "8.9", GPU))
    assert "was built with TensorRT 11.4.0.106" in error.found
    assert error.needed == f"TensorRT {version}, which is installed here"
    assert error.command == rebuild(bundle)


def test_another_gpu_is_refused(bundle: Bundle, put: Callable[..., EngineSidecar]) -> None:
    put()
    error = refusal(bundle, EngineMachine(VERSION, "8.6", GPU))
    assert "was built for compute capability 8.9" in error.found
    assert error.needed == "8.6, which the GPU here has"
    assert error.command == rebuild(bundle)


def test_a_hardware_compatible_engine_runs_on_ampere_and_later(
    bundle: Bundle, put: Callable[..., EngineSidecar]
) -> None:
    sidecar = put(hardware_compatible=True)
    for capability in ("8.0", "9.0", "12.0"):
        check_loadable(bundle, sidecar, EngineMachine(VERSION, capability, GPU))
    assert "compute capability" in refusal(bundle, EngineMachine(VERSION, "7.5", GPU)).found


@pytest.mark.parametrize("built_on", ["NVIDIA L4", "NVIDIA GeForce RTX 4090 Laptop GPU", None])
def test_another_model_of_the_same_compute_capability_is_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar], built_on: str | None
) -> None:
    """TensorRT loads such a plan with a warning, and says that it may fail."""
    put(gpu=built_on)
    error = refusal(bundle)
    assert f"was built on {built_on or 'an unknown GPU'}" in error.found
    assert error.needed.startswith("NVIDIA GeForce RTX 4090, which is here")
    assert error.command == rebuild(bundle)


@pytest.mark.parametrize("fields", [{"hardware_compatible": True}, {"target": "tensorrt-rtx"}])
def test_plans_for_several_models_run_on_each_of_them(
    bundle: Bundle, put: Callable[..., EngineSidecar], fields: dict[str, Any]
) -> None:
    check_loadable(bundle, put(gpu="NVIDIA L4", **fields), MACHINE)


def test_rtx_is_told_which_gpu_to_build_for(
    bundle: Bundle, put: Callable[..., EngineSidecar]
) -> None:
    put(target="tensorrt-rtx", options=("--compute-capability", "8.9", "--workspace", "64"))
    error = refusal(bundle, EngineMachine(VERSION, "12.0", GPU))
    options = " --workspace 64 --compute-capability 12.0"
    assert error.command == rebuild(bundle, options, "tensorrt-rtx")


def test_host_code_must_be_allowed(bundle: Bundle, put: Callable[..., EngineSidecar]) -> None:
    options = ("--version-compatible", "--strip-weights")
    sidecar = put(version_compatible=True, options=options)
    error = refusal(bundle)
    assert "holds host code (built with --version-compatible)" in error.found
    assert "allow_host_code=True" in error.needed
    assert error.command == rebuild(bundle, " --strip-weights")
    for version in (VERSION, "11.4.1.2", "11.10.0.1"):
        check_loadable(bundle, sidecar, EngineMachine(version, "8.9", GPU), allow_host_code=True)
    for version in ("11.3.9.1", "12.0.0.1"):
        error = refusal(bundle, EngineMachine(version, "8.9", GPU), allow_host_code=True)
        assert "was built with TensorRT" in error.found


@pytest.mark.parametrize(
    ("parity", "found"),
    [
        (None, "has no parity results (built on a machine without a GPU)"),
        ((), "has no parity results (built on a machine without a GPU)"),
        ((*PASSED, {"name": "masks", "passed": False}), "failed 1 of 2 parity checks (masks)"),
        (({"name": "masks"},), "failed 1 of 1 parity checks (masks)"),
        (({"name": "masks", "passed": "yes"},), "failed 1 of 1 parity checks (masks)"),
    ],
)
def test_an_engine_without_parity_results_is_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar], parity: Any, found: str
) -> None:
    put(parity=parity, parity_reason="built on a machine without a GPU")
    error = refusal(bundle)
    assert found in error.found
    assert error.needed.startswith("checks against ONNX Runtime, all passed")
    assert error.command == rebuild(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("parity"), "missing required field parity"),
        (lambda values: values.pop("schema"), "is damaged"),
        (lambda values: values.update(schema="rvos-deploy/engine/2"), "has schema rvos-deploy/eng"),
        (lambda values: values.update(graph="backbone"), "belongs to backbone for tensorrt"),
        (
            lambda values: values.update(hardware_compatible="no"),
            "expected bool, got str - at $.hardware_compatible",
        ),
        (
            lambda values: values.update(profiles=[]),
            "expected array of length >= 1 - at $.profiles",
        ),
        (lambda values: values.update(profiles=[{"H": [1, 2]}]), "is damaged"),
        (lambda values: values.update(more=1), "is damaged"),
        (lambda values: values.update(parity=3), "is damaged"),
    ],
)
def test_a_damaged_sidecar_is_refused(
    bundle: Bundle,
    put: Callable[..., EngineSidecar],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    put()
    file = sidecar_file(plan_file(bundle.path, "tensorrt", "mask_head"))
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")
    (error,) = list_engines(bundle.path)
    assert isinstance(error, EngineError)
    assert message in str(error)
    assert error.command == rebuild(bundle, "")


@pytest.mark.parametrize("field", EngineSidecar.__struct_fields__)
def test_a_wrong_or_missing_field_is_one_line_that_names_it(
    bundle: Bundle, put: Callable[..., EngineSidecar], field: str
) -> None:
    put()
    file = sidecar_file(plan_file(bundle.path, "tensorrt", "mask_head"))
    whole = json.loads(file.read_text(encoding="utf-8"))
    missing = {name: value for name, value in whole.items() if name != field}
    for values, named in (
        (missing, f"missing required field {field}"),
        ({**whole, field: [[3]]}, f"at $.{field}"),
        ({**whole, f"{field}_too": 3}, f"unknown field {field}_too"),
    ):
        file.write_text(json.dumps(values), encoding="utf-8")
        (error,) = list_engines(bundle.path)
        assert isinstance(error, EngineError)
        assert named in error.found
        assert error.command == rebuild(bundle, "")
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("profiles", [{"H": [64, 32, 128]}], "profile H is not in order, min <= opt <= max"),
        ("profiles", [{"H W": [32, 32, 32]}], "at key in $.profiles[0]"),
        ("parity", [{"name": "masks", "passed": True, "j_and_f": "1"}], "j_and_f of a parity"),
    ],
)
def test_a_field_of_a_wrong_value_is_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar], field: str, value: object, message: str
) -> None:
    put()
    file = sidecar_file(plan_file(bundle.path, "tensorrt", "mask_head"))
    values = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**values, field: value}), encoding="utf-8")
    (error,) = list_engines(bundle.path)
    assert message in str(error)


def test_no_sidecar_and_no_engine(bundle: Bundle, put: Callable[..., EngineSidecar]) -> None:
    with pytest.raises(EngineError, match="no tensorrt engine of mask_head; needed"):
        read_sidecar(bundle.path, "tensorrt", "mask_head")
    put()
    file = sidecar_file(plan_file(bundle.path, "tensorrt", "mask_head"))
    file.write_text("{", encoding="utf-8")
    with pytest.raises(EngineError, match=r"is damaged .*; needed"):
        read_sidecar(bundle.path, "tensorrt", "mask_head")
    file.unlink()
    with pytest.raises(EngineError, match=r"mask_head\.plan has no sidecar"):
        read_sidecar(bundle.path, "tensorrt", "mask_head")


def test_sizes_outside_the_profiles_are_refused(
    bundle: Bundle, put: Callable[..., EngineSidecar]
) -> None:
    landscape = {"H": (32, 128, 128), "W": (32, 224, 224), "E": (1, 2, 8)}
    portrait = {**landscape, "H": (32, 224, 224), "W": (32, 128, 128)}
    sidecar = put(profiles=(landscape, portrait))

    def load(machine: EngineMachine) -> Any:
        raise AssertionError("not needed to choose a profile")

    engine = Engine(
        bundle.graphs["mask_head"],
        sidecar.profiles,
        load,
        lambda axes: no_profile(bundle.path, sidecar, axes),
    )
    assert engine.profile({"H": 128, "W": 224, "E": 1}) == 0
    assert engine.profile({"H": 224, "W": 128, "E": 8}) == 1
    with pytest.raises(EngineError) as error:
        engine.profile({"H": 224, "W": 224, "E": 9})
    assert error.value.needed == "H=224,W=224,E=9"
    wider = " --workspace 512 --profile H=32:128:224,W=32:224:224,E=1:2:9"
    assert error.value.command == rebuild(bundle, wider)


class StandInTensorRT:
    """Stands in for TensorRT: remembers whether anything was deserialised, and how."""

    __name__ = "tensorrt"
    __version__ = VERSION

    def __init__(self) -> None:
        self.plans: list[bytes] = []
        self.host_code: list[bool] = []
        self.Runtime = self._runtime

    def _runtime(self, logger: object) -> Any:
        def deserialize(plan: bytes) -> str:
            self.plans.append(plan)
            self.host_code.append(runtime.engine_host_code_allowed)
            return "engine"

        runtime = SimpleNamespace(
            engine_host_code_allowed=None, deserialize_cuda_engine=deserialize
        )
        return runtime


def test_nothing_is_deserialised_before_every_check_has_passed(
    bundle: Bundle, put: Callable[..., EngineSidecar]
) -> None:
    trt = StandInTensorRT()
    for wrong in (
        {"parity": None},
        {"tensorrt_version": "11.3.0.1"},
        {"compute_capabilities": ("8.6",)},
        {"gpu": "NVIDIA L4"},
        {"version_compatible": True},
        {"plan_sha256": "0" * 64},
        {"onnx_sha256": {}},
    ):
        sidecar = put(**wrong)
        with pytest.raises(EngineError):
            engine_loading.load_engine(trt, None, bundle, sidecar, MACHINE)
    assert trt.plans == []
    assert engine_loading.load_engine(trt, None, bundle, put(), MACHINE) == "engine"
    assert (trt.plans, trt.host_code) == ([PLAN], [False])
    engine_loading.load_engine(
        trt, None, bundle, put(version_compatible=True), MACHINE, allow_host_code=True
    )
    assert trt.host_code == [False, True]
