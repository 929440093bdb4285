"""Provide a bundle with engines, and recording stand-ins of the modules that reach a GPU."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rvos_deploy.bundle.engine_sidecar import (
    EngineSidecar,
    engine_folder,
    plan_file,
    sidecar_file,
)
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.json_file import write_json
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries

# pytest's importlib mode leaves this folder off the path; tests here share modules.
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from recording_cuda import Gpu
    from recording_tensorrt import FakeTensorRt

SIZES = {"H": (32, 96, 256), "W": (32, 160, 256), "E": (1, 2, 4), "L": (2, 16, 77), "M": (1, 8, 64)}


@pytest.fixture
def engines(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """Link a bundle, with an engine of every graph whose plan is the path of its ONNX file."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    bundle = open_bundle(folder)
    engine_folder(folder, "tensorrt").mkdir(parents=True)
    for graph, spec in bundle.graphs.items():
        plan = plan_file(folder, "tensorrt", graph)
        plan.write_bytes(str(bundle.graph_file(graph).path).encode())
        sidecar = EngineSidecar(
            graph=graph,
            target="tensorrt",
            precision="fp32",
            created="2026-11-24T12:00:00Z",
            plan_sha256=hashlib.sha256(plan.read_bytes()).hexdigest(),
            plan_bytes=plan.stat().st_size,
            onnx_sha256={n: e.sha256 for n, e in bundle.onnx_entries(graph).items()},
            tensorrt_version="11.4.0.106",
            compute_capabilities=("8.9",),
            gpu="stand-in",
            version_compatible=False,
            hardware_compatible=False,
            stripped=False,
            profiles=({axis.name: SIZES[axis.name] for axis in spec.axes},),
            options=(),
            settings={},
            layers={},
            plugin_layers=0,
            build_seconds=1.0,
            versions={},
            parity=({"name": "stand-in", "passed": True},),
            parity_reason=None,
        )
        write_json(sidecar_file(plan), sidecar.as_dict())
    return bundle


@pytest.fixture
def tensorrt(cuda_modules: Gpu, engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """Put the three stand-ins where Python looks for the real modules."""
    from recording_tensorrt import FakeTensorRt

    fake = FakeTensorRt(cuda_modules.machine, dict(engines.graphs))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture(params=["stand-in", pytest.param("card", marks=pytest.mark.gpu)])
def each_device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """Give the stand-in and, with ``pytest -m gpu``, a real GPU."""
    from host_kernels import host_library

    if request.param == "card":
        pycuda = pytest.importorskip("pycuda.driver")
        driver = pytest.importorskip("cuda.bindings.driver")
        held = acquire_device(CudaLibraries(pycuda, driver))
        yield held
        held.release()
        return
    host_library()  # skips here: in the middle of a test, the skip itself would hold memory
    gpu = request.getfixturevalue("gpu")
    held = acquire_device(gpu.libraries)
    yield held
    held.release()
    gpu.check_clean()
