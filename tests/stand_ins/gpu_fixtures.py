"""Provide fixtures of the stand-ins for every folder of tests that reaches a GPU."""

from __future__ import annotations

import sys

import pytest
from recording_cuda import DRIVERS, FakeBindings, FakePycuda, Gpu, Machine

both_drivers = pytest.mark.parametrize("gpu", DRIVERS, indirect=True)
"""Run a test by pycuda's stand-in, and by the one of ``cuda.bindings`` alone."""


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return a recording GPU; give its ``libraries`` to ``acquire_device``.

    pycuda drives it, or what a test of :data:`both_drivers` says.
    """
    from rvos_deploy.runtime.backends.cuda import device as cuda_device

    machine = Machine()
    monkeypatch.setattr(cuda_device, "_devices", {})
    driver: str = getattr(request, "param", "pycuda")
    return Gpu(machine, FakePycuda(machine), FakeBindings(machine), driver)


@pytest.fixture
def cuda_modules(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Put the recording GPU where Python looks for pycuda and cuda-bindings."""
    from rvos_deploy.runtime.backends.cuda.nvrtc import load_nvrtc

    # NVRTC is the real one. It needs no GPU, but it imports helpers of the real driver module.
    load_nvrtc()
    pycuda = gpu.pycuda if gpu.driver == "pycuda" else None
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.bindings)
    return gpu
