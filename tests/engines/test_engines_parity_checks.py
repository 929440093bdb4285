"""Test an engine's way from the builder into the bundle on a machine with a GPU.

The real TensorRT-RTX builds the plan. The GPU is made up: the graphs that ship run the plan on
recording stand-ins, where ONNX Runtime does the arithmetic (tests/stand_ins). Everything else is
what runs on a machine with a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from recording_cuda import Gpu as RecordingGpu
from recording_tensorrt import FakeTensorRt

from rvos_deploy.bundle.engine_sidecar import engine_folder, read_sidecar
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.engines import build, parity_checks
from rvos_deploy.engines.build import build_engines
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.errors import BackendError, ParityError
from rvos_deploy.runtime.backends import device_names
from rvos_deploy.runtime.backends.gpu import Gpu
from rvos_deploy.runtime.backends.tensorrt.engine_checks import EngineMachine, check_loadable

rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
SMALL = "H=32:64:96,W=32:96:160,E=1:2:3,L=2:5:20,M=1:3:64"
SETTINGS = BuildSettings("tensorrt-rtx", profiles=(SMALL,))


class RecordingRtx(FakeTensorRt):
    """TensorRT-RTX, except that plans run on the stand-ins."""

    __name__, __version__ = rtx.__name__, rtx.__version__
    DataType, TensorIOMode, TensorLocation = rtx.DataType, rtx.TensorIOMode, rtx.TensorLocation
    ExecutionContextAllocationStrategy = rtx.ExecutionContextAllocationStrategy
    LayerInformationFormat = rtx.LayerInformationFormat
    Logger = rtx.Logger

    def __init__(self, gpu: RecordingGpu, bundle: Bundle) -> None:
        super().__init__(gpu.machine, dict(bundle.graphs))
        self.bundle = bundle
        self.plans: list[Path] = []

    def path_of(self, plan: bytes) -> str:
        """Return the ONNX file of the graph that was built into this plan."""
        files = engine_folder(self.bundle.path, "tensorrt-rtx").rglob("*.plan")
        (file,) = [file for file in files if file.read_bytes() == plan]
        self.plans.append(file)
        return str(self.bundle.graph_file(file.stem).path)

    def __getattr__(self, name: str) -> Any:
        return getattr(rtx, name)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """Link a bundle, so that engines can be installed in it."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    return open_bundle(folder)


@pytest.fixture
def library(
    cuda_modules: RecordingGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> RecordingRtx:
    """Make ``build-engine`` find a made-up GPU."""
    library = RecordingRtx(cuda_modules, bundle)
    gpu = Gpu("NVIDIA GeForce RTX 4090", "8.9")
    monkeypatch.setattr(build, "open_target", lambda target, ordinal: (library, gpu))
    return library


def built(bundle: Bundle, graphs: Sequence[str] = ("mask_head",)) -> Any:
    return build_engines(bundle, SETTINGS, graphs=graphs)


def test_an_engine_that_passes_its_checks_is_installed_and_loadable(
    gpu: RecordingGpu, library: RecordingRtx, bundle: Bundle
) -> None:
    (made,) = built(bundle)
    engine = read_sidecar(bundle.path, "tensorrt-rtx", "mask_head")
    assert engine == made
    assert engine.gpu == "NVIDIA GeForce RTX 4090"
    assert engine.parity_passed
    assert engine.parity_reason is None
    assert engine.parity is not None
    *numbers, masks = engine.parity
    assert len(numbers) == 1 + 2**3
    assert all(check["max_abs"] <= check["tolerance"] for check in numbers)
    assert masks["j_and_f"] == 1.0
    assert masks["name"].startswith("masks of a clip, 6 frames, 2 expressions")
    assert engine.layers["engine"] == {"float32": 1}
    assert engine.layers["engine_reason"] is None
    check_loadable(bundle, engine, EngineMachine(rtx.__version__, "8.9", "stand-in"))
    (plan,) = library.plans
    assert plan.parent.parent == engine_folder(bundle.path, "tensorrt-rtx")
    assert not plan.exists(), "the plan is compared before it is renamed"
    # Plain runs at every corner; the clip's, which come again, were captured and replayed.
    ran = [entry[0] for entry in gpu.machine.log if entry[1:2] == ("mask_head",)]
    assert ran.count("enqueued") > len(numbers)
    assert ran.count("replayed") > 0
    gpu.check_clean()


def test_the_gpu_that_is_named_builds_and_runs_the_engine(
    gpu: RecordingGpu, library: RecordingRtx, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.machine.gpus = 2
    monkeypatch.setattr(device_names, "find_gpu", lambda ordinal: Gpu("a second", "8.9"))
    asked: list[tuple[int, int]] = []
    build_plan = build.build_plan

    def recorded(*job: Any) -> Any:
        contexts = [entry[1] for entry in gpu.machine.log if entry[0] == "context retained"]
        asked.append((len(gpu.machine.stack), contexts[-1]))
        return build_plan(*job)

    monkeypatch.setattr(build, "build_plan", recorded)
    settings = BuildSettings("tensorrt-rtx", profiles=(SMALL,), device="cuda:1")
    build_engines(bundle, settings, graphs=["mask_head"])
    assert asked == [(1, 1)], "the context of the second GPU is current while TensorRT builds"
    assert {entry[1] for entry in gpu.machine.log if entry[0] == "context retained"} == {1}
    gpu.check_clean()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("onnxruntime", r"but onnxruntime is not installed; pip install 'rvos-deploy\[cpu\]'"),
        ("cuda.bindings.driver", "but back end tensorrt: cuda-bindings is not installed; pip inst"),
    ],
)
def test_what_the_checks_need_is_looked_for_before_the_build(
    gpu: RecordingGpu,
    library: RecordingRtx,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(build, "build_plan", None)
    with pytest.raises(BackendError, match=f"^engines are checked once they are built, {message}"):
        built(bundle)
    assert not engine_folder(bundle.path, "tensorrt-rtx").exists()


def test_an_engine_with_wrong_outputs_is_not_installed(
    gpu: RecordingGpu, library: RecordingRtx, bundle: Bundle
) -> None:
    library.error = 0.01
    with pytest.raises(ParityError, match="9 of 9 parity checks of the tensorrt-rtx engines"):
        built(bundle)
    assert not engine_folder(bundle.path, "tensorrt-rtx").exists()
    gpu.check_clean()


def test_an_engine_with_wrong_masks_is_not_installed(
    gpu: RecordingGpu, library: RecordingRtx, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_checks, "compare_graph", lambda *compared: [])
    library.error = -1e6
    with pytest.raises(ParityError, match=r"1 of 1 parity checks .* masks of a clip"):
        built(bundle)
    assert not engine_folder(bundle.path, "tensorrt-rtx").exists()
    gpu.check_clean()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("deserialize", "tensorrt_rtx .* cannot deserialise the plan"),
        ("types", "does not fit the graph's contract"),
        ("context", "GPU memory is short"),
        ("shape", r"refuses scores of shape \[2, \d+\]"),
        ("enqueue", "TensorRT failed in mask_head"),
    ],
)
def test_an_engine_that_cannot_run_is_one_line_and_leaves_nothing(
    gpu: RecordingGpu, library: RecordingRtx, bundle: Bundle, what: str, message: str
) -> None:
    library.refusing.add(what)
    with pytest.raises(BackendError, match=message) as told:
        built(bundle)
    assert "\n" not in str(told.value)
    del told
    assert not engine_folder(bundle.path, "tensorrt-rtx").exists()
    gpu.check_clean()
