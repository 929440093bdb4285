"""Test each check of ``doctor`` on machines that lack something."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rvos_deploy.bundle.folder import packaged_bundles
from rvos_deploy.cache_folder import VARIABLE
from rvos_deploy.doctor import bundle_checks, library_checks, machine_checks
from rvos_deploy.doctor.examination import Check, all_checks, examine
from rvos_deploy.doctor.outcome import Outcome, passed
from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends.gpu import Gpu


def test_this_machine_works() -> None:
    """What the tests themselves need cannot be missing here."""
    outcomes = {check.title: outcome for check, outcome in examine(all_checks("tiny"))}
    for title in ("Python", "cores and memory", "disk", "FFmpeg", "bundle", "one frame"):
        assert outcomes[title].state == "passed", outcomes[title]
        assert outcomes[title].fix == ""
    for outcome in outcomes.values():
        assert "\n" not in outcome.found + outcome.fix
    assert "equal masks" in outcomes["one frame"].found or "," not in outcomes["one frame"].found


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "OLDEST_PYTHON", (sys.version_info[0], 99))
    outcome = machine_checks.python()
    assert outcome.state == "failed"
    assert f"{sys.version_info[0]}.99 or newer" in outcome.fix


def test_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks.kernel, "available", lambda: False)
    outcome = machine_checks.processor()
    assert outcome.state == "absent"
    assert "was not built" in outcome.found
    assert "C++ compiler" in outcome.fix


@pytest.mark.parametrize(("limit", "state"), [(1 << 29, "failed"), (1 << 31, "passed")])
def test_a_container_with_little_memory(
    limit: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_checks, "usable_memory_bytes", lambda root: limit)
    monkeypatch.setattr(machine_checks, "memory_limit_bytes", lambda root: limit)
    outcome = machine_checks.limits()
    assert outcome.state == state
    assert "limited by a container" in outcome.found
    assert ("docker run --memory" in outcome.fix) == (state == "failed")


@pytest.mark.parametrize(
    ("lacks", "state", "says"), [("libx264", "failed", "overlay"), ("av1", "absent", "without av1")]
)
def test_an_ffmpeg_without_a_codec(
    lacks: str, state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", set(av.codecs_available) - {lacks})
    outcome = machine_checks.ffmpeg()
    assert outcome.state == state
    assert says in outcome.found


def test_no_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    outcome = machine_checks.ffmpeg()
    assert (outcome.state, outcome.fix) == ("failed", "pip install --force-reinstall av")


def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder", encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(file / "cache"))
    outcome = machine_checks.disk()
    assert outcome.state == "failed"
    assert str(file / "cache") in outcome.found
    assert VARIABLE in outcome.fix


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=machine_checks.LEAST_DISK - 1)
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: usage)
    outcome = machine_checks.disk()
    assert outcome.state == "failed"
    assert "1.0 GiB free" in outcome.found


def with_packages(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    found = {name.replace("_", "-"): version for name, version in packages.items()}
    monkeypatch.setattr(library_checks, "installed", found.get)


def test_two_onnxruntimes_shadow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.30.0")
    outcome = library_checks.onnxruntime()
    assert outcome.state == "failed"
    assert "1.32.0" in outcome.found
    assert "1.30.0" in outcome.found
    assert outcome.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")


@pytest.mark.parametrize(("others", "state"), [(("openvino",), "absent"), ((), "failed")])
def test_no_onnxruntime(
    others: tuple[str, ...], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_packages(monkeypatch)
    monkeypatch.setattr(library_checks, "installed_cpu_backends", lambda: others)
    outcome = library_checks.onnxruntime()
    assert (outcome.state, outcome.fix) == (state, "pip install 'rvos-deploy[cpu]'")


def test_no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_checks, "import_library", lambda *_, **__: None)
    outcome = library_checks.openvino()
    assert (outcome.state, outcome.fix) == ("absent", "pip install 'rvos-deploy[openvino]'")


def with_driver(
    monkeypatch: pytest.MonkeyPatch, cuda: tuple[int, int] | None, gpu: Gpu | None
) -> None:
    monkeypatch.setattr(library_checks, "driver_cuda_version", lambda: cuda)
    monkeypatch.setattr(library_checks, "find_gpu", lambda: gpu)


CARD = Gpu("NVIDIA L4", "8.9")


@pytest.mark.parametrize(
    ("cuda", "gpu", "bindings", "state", "says"),
    [
        (None, None, "13.0.1", "absent", "no NVIDIA driver"),
        ((13, 0), None, "13.0.1", "failed", "shows no GPU"),
        ((12, 8), CARD, "13.0.1", "failed", "need a driver for CUDA 13"),
        ((12, 8), CARD, "12.9.0", "passed", "NVIDIA L4"),
        ((13, 1), CARD, "13.0.1", "passed", "driver for CUDA 13.1"),
        ((12, 8), CARD, None, "passed", "compute capability 8.9"),
    ],
)
def test_the_driver(
    cuda: tuple[int, int] | None,
    gpu: Gpu | None,
    bindings: str | None,
    state: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_driver(monkeypatch, cuda, gpu)
    monkeypatch.setattr(library_checks, "installed", {"cuda-bindings": bindings}.get)
    outcome = library_checks.gpu_driver()
    assert outcome.state == state
    assert says in outcome.found
    assert bool(outcome.fix) == (state == "failed")


def test_libraries_of_a_gpu_are_advised_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_packages(monkeypatch)
    monkeypatch.setattr(library_checks, "find_spec", lambda name: None)
    checks = (library_checks.tensorrt, library_checks.tensorrt_rtx, library_checks.cuda_provider)
    with_driver(monkeypatch, None, None)
    assert {check().fix for check in checks} == {""}
    with_driver(monkeypatch, (13, 0), CARD)
    fixes = [check().fix for check in checks]
    assert all(fix.endswith("]'") and "pip install 'rvos-deploy[" in fix for fix in fixes)
    assert {check().state for check in checks} == {"absent"}
    assert library_checks.pycuda().state == "absent"


def test_a_provider_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real back end refuses: this onnxruntime has no CUDA provider."""
    with_packages(monkeypatch, onnxruntime_gpu="1.30.0")
    with_driver(monkeypatch, (13, 0), CARD)
    ((_, outcome),) = examine((Check("CUDA", library_checks.cuda_provider),))
    assert outcome.state == "failed"
    assert "CUDAExecutionProvider" in outcome.found
    assert "pip install 'rvos-deploy[gpu]'" in outcome.found + outcome.fix


def test_a_broken_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_checks, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    outcome = library_checks.tensorrt()
    assert outcome.state == "failed"
    assert outcome.fix == "pip install 'rvos-deploy[tensorrt]'"


def test_packages_of_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, torch="2.14.1", onnx="1.23.2")
    outcome = library_checks.export_packages()
    assert outcome.state == "absent"
    assert "open_clip_torch" in outcome.found
    assert "torch," not in outcome.found.replace("open_clip_torch,", "")
    assert outcome.fix == "pip install 'rvos-deploy[train]'"


def test_a_damaged_bundle(tmp_path: Path) -> None:
    import shutil

    bundle = shutil.copytree(packaged_bundles()["tiny"], tmp_path / "bundle")
    graph = bundle / "mask_head.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    outcomes = [
        outcome for check, outcome in examine(all_checks(bundle)) if "bundle" in check.title
    ]
    assert outcomes[0].state == "failed"
    assert "mask_head.onnx" in outcomes[0].found + outcomes[0].fix


def test_back_ends_that_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    def masks(path: Any, backend: str, image: Any) -> Any:
        found = np.zeros((1, *image.shape[:2]), np.bool_)
        found[:, : 40 if backend == "mine" else 20] = True
        return found

    monkeypatch.setattr(bundle_checks, "_masks", masks)
    monkeypatch.setattr(bundle_checks, "installed_cpu_backends", lambda: ("theirs", "mine"))
    outcome = bundle_checks.one_frame("tiny")
    assert outcome.state == "failed"
    assert "masks of mine and theirs differ" in outcome.found
    assert outcome.fix == "rvos-deploy verify tiny --backend mine"


def test_every_check_runs_though_one_breaks() -> None:
    def broken() -> Outcome:
        raise RuntimeError("two\nlines")

    def refused() -> Outcome:
        raise InputError("it is not there; put it there")

    checks = (Check("a", broken), Check("b", refused), Check("c", lambda: passed("fine")))
    first, second, third = (outcome for _, outcome in examine(checks))
    assert (first.state, first.found) == ("failed", "RuntimeError: two lines")
    assert (second.state, second.found, second.fix) == (
        "failed",
        "it is not there",
        "put it there",
    )
    assert third.state == "passed"
