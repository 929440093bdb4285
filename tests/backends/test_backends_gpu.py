"""Test how GPUs are found, counted and told apart by UUID, on a stand-in of the driver."""

from __future__ import annotations

import ctypes
import uuid
from typing import Any

import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends import gpu
from rvos_deploy.runtime.backends.device_names import (
    check_device,
    check_gpu,
    cuda_ordinal,
    plain_device,
)
from rvos_deploy.runtime.backends.gpu import Gpu

FIRST = uuid.UUID("00010203-0405-0607-0809-0a0b0c0d0e0f")
SECOND = uuid.UUID("0a1b2c3d-0405-0607-0809-0a0b0c0d0e0f")
INSTANCE = uuid.UUID("77777777-0405-0607-0809-0a0b0c0d0e0f")


class StandInDriver:
    """Stands in for the CUDA driver: GPUs with their UUID, and that of a MIG instance on it."""

    def __init__(self, *gpus: tuple[uuid.UUID, uuid.UUID], init: int = 0) -> None:
        self.gpus, self.init = gpus, init

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        ctypes.cast(device, ctypes.POINTER(ctypes.c_int))[0] = 5 + ordinal
        return 0 if ordinal < len(self.gpus) else 101

    def cuDeviceGetUuid(self, found: Any, device: Any) -> int:  # noqa: N802
        found[:] = self.gpus[device.value - 5][0].bytes
        return 0

    def cuDeviceGetUuid_v2(self, found: Any, device: Any) -> int:  # noqa: N802
        found[:] = self.gpus[device.value - 5][1].bytes
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        assert size == 256
        name.value = [b"NVIDIA GeForce RTX 4090", b"NVIDIA L4"][device.value - 5]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        assert 5 <= device.value < 5 + len(self.gpus)
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = {75: 8, 76: 9}[attribute]
        return 0


class OldDriver(StandInDriver):
    """A driver before CUDA 11.4."""

    cuDeviceGetUuid_v2 = None  # type: ignore[assignment]  # noqa: N815


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver((FIRST, FIRST), (SECOND, INSTANCE))
    monkeypatch.setattr(gpu, "_driver", lambda: driver)


@pytest.fixture(params=["no driver", "no device", "no GPU"])
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 is CUDA_ERROR_NO_DEVICE.
    drivers = {"no device": StandInDriver(init=100), "no GPU": StandInDriver()}
    monkeypatch.setattr(gpu, "_driver", lambda: drivers.get(request.param))


def test_the_driver_names_each_gpu(two_gpus: None) -> None:
    assert gpu.find_gpu() == Gpu("NVIDIA GeForce RTX 4090", "8.9")
    assert gpu.find_gpu(1) == Gpu("NVIDIA L4", "8.9")
    assert gpu.find_gpu(2) is None
    assert gpu.gpu_count() == 2


def test_without_a_gpu_there_is_none(no_gpu: None) -> None:
    assert gpu.find_gpu() is None
    assert gpu.gpu_count() == 0
    assert gpu.gpu_uuid() is None
    with pytest.raises(InputError, match=r"'GPU-0a1b.*; it shows none: check the driver"):
        cuda_ordinal(f"GPU-{SECOND}")


def test_a_driver_without_a_gpu_tells_its_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_driver", lambda: StandInDriver(init=100))
    assert gpu.driver_cuda_version() == (13, 1)
    monkeypatch.setattr(gpu, "_driver", lambda: None)
    assert gpu.driver_cuda_version() is None


def test_nvidia_smi_takes_the_uuid_of_the_gpu_also_for_its_instance(two_gpus: None) -> None:
    """By number nvidia-smi would show another GPU where CUDA_VISIBLE_DEVICES hides some."""
    assert gpu.gpu_uuid() == f"GPU-{FIRST}"
    assert gpu.gpu_uuid(1) == f"GPU-{SECOND}"
    assert gpu.gpu_uuid(2) is None


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [
        (f"GPU-{FIRST}", 0),
        (f"GPU-{SECOND}", 1),
        (f"GPU-{str(SECOND).upper()}", 1),
        (f"MIG-{INSTANCE}", 1),
    ],
)
def test_a_uuid_names_a_gpu_or_an_instance(two_gpus: None, name: str, ordinal: int) -> None:
    assert cuda_ordinal(name) == ordinal
    plain = ("cuda", "cuda:1")[ordinal]
    assert plain_device(name) == check_device(name) == check_gpu(name) == plain


def test_a_driver_without_the_newer_call_knows_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_driver", lambda: OldDriver((FIRST, FIRST)))
    assert cuda_ordinal(f"GPU-{FIRST}") == 0


def test_an_unknown_uuid_is_refused_with_those_that_cuda_shows(two_gpus: None) -> None:
    with pytest.raises(InputError) as error:
        check_device(f"GPU-{INSTANCE}")
    assert str(error.value) == (
        f"CUDA shows no GPU 'GPU-{INSTANCE}' to this process; it shows GPU-{FIRST}, "
        f"MIG-{INSTANCE} (CUDA_VISIBLE_DEVICES hides others)"
    )


@pytest.mark.parametrize("name", ["GPU-1", "GPU-", f"gpu-{FIRST}", f"GPU-{FIRST}0", f"{FIRST}"])
def test_other_forms_are_no_names(two_gpus: None, name: str) -> None:
    assert cuda_ordinal(name) is None
    assert plain_device(name) == name
    with pytest.raises(InputError, match=r"is unknown; known: auto, cpu, cuda, .* nvidia-smi -L"):
        check_device(name)


def test_only_a_gpu_builds_an_engine(two_gpus: None) -> None:
    assert [check_gpu(name) for name in ("cuda", "cuda:0", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    for name in ("cpu", "auto", "cuda:x"):
        with pytest.raises(InputError, match=f"--device '{name}' is no GPU; known: cuda, cuda:N"):
            check_gpu(name)
    with pytest.raises(InputError, match="'cuda:2': CUDA shows only cuda:0 to cuda:1 to this"):
        check_gpu("cuda:2")


def test_where_there_is_no_gpu_only_the_default_may_stay(no_gpu: None) -> None:
    assert check_gpu("cuda") == "cuda"
    with pytest.raises(InputError, match="'cuda:1': CUDA shows no GPU to this process"):
        check_gpu("cuda:1")
