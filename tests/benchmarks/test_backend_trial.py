"""A trial of back ends: who may win it, and what the command records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.benchmarks import backend_trial
from rvos_deploy.benchmarks.backend_trial import hold_trial
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.cache_folder import VARIABLE
from rvos_deploy.errors import BackendError, InputError, ParityError
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends import registry
from rvos_deploy.runtime.backends.base import Graph
from rvos_deploy.runtime.backends.onnxruntime.backend import (
    CPU,
    OnnxRuntimeBackend,
    OnnxRuntimeGraph,
    Place,
)
from rvos_deploy.runtime.backends.registry import BACKENDS, KnownBackend
from rvos_deploy.stream_settings import StreamSettings


@pytest.fixture(autouse=True)
def a_busy_machine_may_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_trial, "LEAST_CORES", 0.0)


SIZE = (64, 128)
"""No size at which a bundle is verified."""


class FaultyGraph(OnnxRuntimeGraph):
    """A graph that computes something else, or fails, at some sizes."""

    fault = ""

    def _run(self, inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> dict[str, Tensor]:
        outputs = super()._run(inputs, axes)
        measured = (axes.get("H"), axes.get("W")) == SIZE
        if self.fault == "fails" and measured and self.spec.name == "backbone":
            raise BackendError("no memory for backbone")
        if self.spec.name == "mask_head" and (
            self.fault == "wrong" or (self.fault == "differs" and measured)
        ):
            return {name: -np.asarray(value) for name, value in outputs.items()}
        return outputs


@dataclass(frozen=True)
class FaultyBackend(OnnxRuntimeBackend):
    fault: str = ""

    def _graph(self, spec: GraphSpec, file: OnnxFile) -> Graph:
        graph = FaultyGraph(spec, file, Place(CPU), self.threads or 1)
        graph.fault = self.fault
        return graph


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    for fault in ("wrong", "fails", "differs"):
        monkeypatch.setitem(
            BACKENDS,
            fault,
            KnownBackend(
                lambda device, threads, fault=fault: FaultyBackend(threads=threads, fault=fault),
                "cpu",
            ),
        )


def test_only_back_ends_equal_to_the_reference_may_win(
    tiny_bundle: Path, faulty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_trial, "FRAMES", 5)
    candidates = ("wrong", "onnxruntime", "missing", "fails", "differs")
    trial = hold_trial(open_bundle(tiny_bundle), candidates, StreamSettings(size=SIZE), threads=1)
    found = {result.backend: result.failure for result in trial.results}
    assert tuple(found) == candidates
    assert "checks failed" in found["wrong"]
    assert found["onnxruntime"] == ""
    assert "unknown back end 'missing'" in found["missing"]
    assert found["fails"] == "no memory for backbone"
    assert "its masks agree with those of onnxruntime to J&F" in found["differs"]
    times = {result.backend for result in trial.results if result.milliseconds is not None}
    assert times == {"onnxruntime"}
    winner = trial.winner()
    assert winner is not None
    assert winner.backend == "onnxruntime"


@pytest.mark.slow
def test_no_back_end_equal_to_the_reference_is_an_error(tiny_bundle: Path, faulty: None) -> None:
    with pytest.raises(ParityError, match=r"no back end reproduces .*wrong: \d+ of \d+ checks"):
        hold_trial(open_bundle(tiny_bundle), ["wrong"], StreamSettings(size=SIZE), threads=1)


def test_no_choice_is_made_while_others_take_the_cores(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_trial, "LEAST_CORES", 1000.0)
    monkeypatch.setattr(backend_trial, "FRAMES", 5)
    with pytest.raises(BackendError, match=r"this one got \d+\.\d\d of them.*machine is idle"):
        hold_trial(open_bundle(tiny_bundle), ["onnxruntime"], StreamSettings(size=SIZE))


def test_a_size_that_graphs_do_not_take_is_refused_first(
    tiny_bundle: Path, static_bundle: Path
) -> None:
    steps: list[str] = []
    for path, settings in (
        (tiny_bundle, StreamSettings(size=(64, 32 * 1000))),
        (static_bundle, StreamSettings(size=SIZE)),
        (static_bundle, StreamSettings(short_side=64)),
    ):
        with pytest.raises(InputError, match=r"size|short"):
            hold_trial(open_bundle(path), ["onnxruntime"], settings, progress=steps.append)
    assert steps == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["twin", pytest.param("openvino", marks=pytest.mark.slow)])
def second(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The other back end of a trial: ONNX Runtime under another name, or OpenVINO."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    else:
        twin = KnownBackend(lambda device, threads: OnnxRuntimeBackend(device, threads), "cpu")
        monkeypatch.setitem(BACKENDS, "twin", twin)
        monkeypatch.setattr(registry, "CPU_BACKENDS", ("onnxruntime", "twin"))
        monkeypatch.setattr(registry, "find_spec", lambda name: name)
    return str(request.param)


def test_the_command_records_what_auto_uses_from_then_on(
    rvos: Callable, static_bundle: Path, video: Path, tmp_path: Path, cache: Path, second: str
) -> None:
    """With the bundle of fixed sizes, whose memory is shorter than the default."""
    run = ("run", video, "the ball", "-b", static_bundle, "-o", tmp_path / "out")
    before = rvos(*run)
    assert (before.code, before.stderr) == (0, "")
    command = f"rvos-deploy choose-backend {static_bundle}"
    assert f"--backend auto: onnxruntime; {second} was not tried here; '{command}'" in before.stdout

    result = rvos("choose-backend", static_bundle, "--json", tmp_path / "c.json")
    assert (result.code, result.stderr) == (0, "")
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["results"]] == ["onnxruntime", second]
    assert all(one["failure"] == "" and one["milliseconds"] > 0 for one in found["results"])
    (file,) = (cache / "backend-trials").iterdir()
    assert f"auto is {found['chosen']} at 64x96, recorded in {file}" in result.stdout

    after = rvos(*run)
    assert (after.code, after.stderr) == (0, "")
    name = "onnxruntime" if second == "twin" else found["chosen"]
    assert f"--backend auto: {name}; {found['reason']}" in after.stdout
    written = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert written["versions"]["backend"]["name"] == name
    assert written["versions"]["backend"]["auto"] == found["reason"]


def test_one_installed_library_leaves_nothing_to_measure(
    rvos: Callable, tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: name == "onnxruntime" or None)
    result = rvos("choose-backend", tiny_bundle)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == (
        f"{tiny_bundle}: nothing to measure: onnxruntime, no other back end for the CPU is "
        "installed\n"
    )
    assert not cache.exists()


def test_a_record_that_cannot_be_written_is_known_before_the_trial(
    rvos: Callable, tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    monkeypatch.setattr(backend_trial, "hold_trial", None)
    cache.write_text("a file")
    result = rvos("choose-backend", tiny_bundle)
    assert result.code == 2
    assert f"{cache}/backend-trials" in result.error
    assert "cannot be written" in result.error
