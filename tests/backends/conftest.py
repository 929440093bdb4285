"""Provide a bundle with engines, and recording stand-ins of the modules that reach a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recording_cuda import DRIVERS

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.runtime.backends.cuda.bindings_driver import BindingsDriver
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.libraries import CudaLibraries

# pytest's importlib mode leaves this folder off the path; tests here share modules.
sys.path.insert(0, str(Path(__file__).parent))
from stand_in_engines import add_engines

if TYPE_CHECKING:
    from recording_cuda import Gpu
    from recording_tensorrt import FakeTensorRt


@pytest.fixture
def engines(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """Link a bundle, with an engine of every graph whose plan is the path of its ONNX file."""
    return add_engines(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def tensorrt(cuda_modules: Gpu, engines: Bundle, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """Put the three stand-ins where Python looks for the real modules."""
    from recording_tensorrt import FakeTensorRt

    fake = FakeTensorRt(cuda_modules.machine, dict(engines.graphs))
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def _card(driver: str) -> CudaLibraries:
    """Return the libraries of a real GPU, driven by this package; skips where it is missing."""
    bindings = pytest.importorskip("cuda.bindings.driver")
    if driver == "pycuda":
        return CudaLibraries(pytest.importorskip("pycuda.driver"), bindings, driver)
    return CudaLibraries(BindingsDriver(bindings), bindings, driver)


@pytest.fixture(
    params=["stand-in", *(pytest.param(name, marks=pytest.mark.gpu) for name in DRIVERS)]
)
def each_device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    """Give the stand-in and, with ``pytest -m gpu``, a real GPU by each driver."""
    from host_kernels import host_library

    if request.param != "stand-in":
        held = acquire_device(_card(request.param))
        yield held
        held.release()
        return
    host_library()  # skips here: in the middle of a test, the skip itself would hold memory
    gpu = request.getfixturevalue("gpu")
    held = acquire_device(gpu.libraries)
    yield held
    held.release()
    gpu.check_clean()
