"""Provide fixtures of the stand-ins for every folder of tests that reaches a GPU."""

from __future__ import annotations

import sys

import pytest
from recording_cuda import FakeBindings, FakePycuda, Gpu, Machine


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return a recording GPU; give its ``libraries`` to ``acquire_device``."""
    from rvos_deploy.runtime.backends.cuda import device as cuda_device

    machine = Machine()
    monkeypatch.setattr(cuda_device, "_devices", {})
    return Gpu(machine, FakePycuda(machine), FakeBindings(machine))


@pytest.fixture
def cuda_modules(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Put the recording GPU where Python looks for pycuda and cuda-bindings."""
    from rvos_deploy.runtime.backends.cuda.nvrtc import load_nvrtc

    # NVRTC is the real one. It needs no GPU, but it imports helpers of the real driver module.
    load_nvrtc()
    monkeypatch.setitem(sys.modules, "pycuda.driver", gpu.pycuda)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.bindings)
    return gpu
