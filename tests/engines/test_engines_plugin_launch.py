"""Test that launching the kernel from Python leaves the thread's CUDA contexts as they were."""

from __future__ import annotations

import pytest
from recording_cuda import Gpu

from rvos_deploy.engines.plugins.ms_deform_attn.launch import primary_context
from rvos_deploy.errors import BackendError


def test_the_primary_context_is_released_and_no_dead_context_stays_current(
    cuda_modules: Gpu,
) -> None:
    machine, other = cuda_modules.machine, object()
    machine.stack.append(other)
    with primary_context():
        assert machine.stack[-1] is not other
        assert machine.retained == 1
    assert machine.stack.pop() is other
    cuda_modules.check_clean()


def test_the_primary_context_is_released_after_an_error(cuda_modules: Gpu) -> None:
    with pytest.raises(ZeroDivisionError), primary_context():
        raise ZeroDivisionError
    cuda_modules.check_clean()


def test_a_gpu_that_is_not_there_is_one_line(cuda_modules: Gpu) -> None:
    with pytest.raises(BackendError, match="no NVIDIA GPU 3"), primary_context(3):
        pass
    cuda_modules.check_clean()
