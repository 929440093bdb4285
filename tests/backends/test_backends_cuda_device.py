"""Test memory, streams and the context on both drivers' stand-ins: order, lifetimes, errors."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gpu_fixtures import both_drivers
from recording_cuda import Gpu

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.tensor import DeviceCopy, DeviceTensor

pytestmark = both_drivers


def tensor(gpu: Gpu, device: CudaDevice, array: np.ndarray) -> DeviceTensor:
    """Copy an array to the device through staging and a copy on the compute stream."""
    with device.lock, device.current():
        staging = device.acquire_staging(array.nbytes)
        staging.upload(array)
        buffer = device.allocate(array.nbytes)
        machine, source, target = gpu.machine, staging.address, buffer.address

        def copy() -> None:
            machine.bytes_at(target, array.nbytes)[:] = machine.bytes_at(source, array.nbytes)

        gpu.stream(device.compute.handle).put(copy)
        staging.mark_read()
        device.release_staging(staging)
        return DeviceTensor(device, array.shape, array.dtype, buffer, device.event(device.compute))


def test_a_round_trip_waits_for_every_stream(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    there = tensor(gpu, device, array)
    assert (np.asarray(there) == array).all()
    assert there.nbytes == array.nbytes
    assert "float32" in repr(there)
    del there
    device.release()
    gpu.check_clean()


def test_many_uploads_in_flight_do_not_overwrite_each_other(gpu: Gpu) -> None:
    """The stand-in's streams run as late as they may, so a buffer reused too early shows."""
    device = acquire_device(gpu.libraries)
    arrays = [np.full((5, 7), value, np.int64) for value in range(20)]
    there = [tensor(gpu, device, array) for array in arrays]
    for array, found in zip(arrays, DeviceCopy(there).arrays(), strict=True):
        assert (found == array).all()
    there.clear()
    device.release()
    gpu.check_clean()


def test_memory_is_pooled_and_flat(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    taken = []
    for value in range(50):
        there = tensor(gpu, device, np.full(1000, value, np.float32))
        (back,) = DeviceCopy([there]).arrays()
        assert (back == value).all()
        taken.append(device.allocated_bytes())
        del there
    assert taken[3:] == [taken[3]] * 47
    device.release()
    gpu.check_clean()


def test_frees_in_order_and_the_context_last(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    there = tensor(gpu, device, np.ones(9, np.float32))
    gpu.machine.log.clear()
    device.release()
    kinds = [entry[0] for entry in gpu.machine.log]
    order = [kind for kind in kinds if kind in ("freed", "stream freed", "context released")]
    assert order == sorted(order, key=["freed", "stream freed", "context released"].index)
    assert order[-1] == "context released"
    with pytest.raises(BackendError, match="freed with its segmenter"):
        _ = there.address
    with pytest.raises(BackendError, match="load the bundle again"):
        device.allocate(8)
    gpu.check_clean()


def test_references_are_counted_and_share_one_object(gpu: Gpu) -> None:
    first, second = acquire_device(gpu.libraries), acquire_device(gpu.libraries)
    assert first is second
    assert gpu.machine.retained == 1
    first.release()
    assert gpu.machine.retained == 1
    second.allocate(8)
    second.release()
    gpu.check_clean()
    assert acquire_device(gpu.libraries) is not first


def test_other_users_of_cuda_find_their_context_as_it_was(gpu: Gpu) -> None:
    """PyTorch sets the runtime's context; an application may have pushed one by pycuda."""
    other, own = object(), gpu.pycuda.Device(0).retain_primary_context()
    gpu.machine.stack.append(other)
    own.push()
    before = list(gpu.machine.stack), list(gpu.machine.pycuda_stack)
    device = acquire_device(gpu.libraries)
    with device.current(), device.current():
        assert gpu.machine.stack[-1] not in (other, own)
    assert (gpu.machine.stack, gpu.machine.pycuda_stack) == before
    device.release()
    assert (gpu.machine.stack, gpu.machine.pycuda_stack) == before


def test_the_last_release_may_come_from_another_thread(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    found = []

    def elsewhere() -> None:
        there = tensor(gpu, device, np.ones(3, np.float32))
        found.append(np.asarray(there).sum())
        device.release()
        found.append((gpu.machine.stack, gpu.machine.pycuda_stack))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [3.0, ([], [])]
    gpu.check_clean()


def test_threads_share_the_streams(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    wrong: list[int] = []

    def work(value: int) -> None:
        for step in range(20):
            array = np.full(100, 100 * value + step, np.int32)
            there = tensor(gpu, device, array)
            # The stand-in's queues are no more thread-safe than Python's lists.
            with device.lock:
                if not (DeviceCopy([there]).arrays()[0] == array).all():
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    device.release()
    gpu.check_clean()


def test_a_copy_keeps_what_it_copies(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    under_way = DeviceCopy([tensor(gpu, device, np.full(50, 1, np.float32))])
    other = tensor(gpu, device, np.full(50, 2, np.float32))
    assert (np.asarray(other) == 2).all()
    assert (under_way.arrays()[0] == 1).all()
    del other, under_way
    device.release()
    gpu.check_clean()


def test_out_of_memory_frees_idle_blocks_first(gpu: Gpu) -> None:
    gpu.machine.memory = 8 * 2**20
    device = acquire_device(gpu.libraries)
    idle = device.allocate(3 * 2**20)
    del idle
    kept = device.allocate(6 * 2**20)
    assert device.allocated_bytes() == 6 * 2**20
    with pytest.raises(
        BackendError, match=r"4 MiB are needed, 2 of 8 MiB are free.*--size"
    ) as told:
        device.allocate(4 * 2**20)
    assert "\n" not in str(told.value)
    del kept
    device.release()
    gpu.check_clean()


def test_no_gpu_is_one_line(gpu: Gpu) -> None:
    gpu.machine.gpus = 0
    with pytest.raises(BackendError, match=r"no NVIDIA GPU 0.*no CUDA-capable device.*nvidia-smi"):
        acquire_device(gpu.libraries)
    gpu.check_clean()


def test_no_driver_is_one_line(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda.bindings load the driver's library at the first call."""
    if gpu.driver == "pycuda":
        pytest.skip("pycuda cannot be imported without the driver's library")

    def cannot_load(flags: int) -> tuple[int]:
        raise RuntimeError('"cuda" is an NVIDIA driver library\nand can only be found ...')

    monkeypatch.setattr(gpu.bindings, "cuInit", cannot_load)
    with pytest.raises(
        BackendError, match=r"\(the CUDA driver's library cannot be loaded\); check"
    ):
        acquire_device(gpu.libraries)
    gpu.check_clean()


def test_a_failed_creation_leaves_nothing(gpu: Gpu) -> None:
    gpu.machine.failing["Stream"] = 1
    with pytest.raises(BackendError, match=r"CUDA failed on GPU 0 .*because the test says so"):
        acquire_device(gpu.libraries)
    gpu.check_clean()


def test_the_array_interface_tells_the_stream(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    there = tensor(gpu, device, np.zeros((2, 3), np.float16))
    interface = there.__cuda_array_interface__
    assert interface["shape"] == (2, 3)
    assert interface["typestr"] == "<f2"
    assert interface["data"] == (there.address, False)
    assert interface["stream"] == device.compute.handle
    with pytest.raises(ValueError, match="without a copy"):
        np.array(there, copy=False)
    del there, interface
    device.release()
    gpu.check_clean()


def test_another_librarys_memory_is_kept_alive_until_it_was_read(gpu: Gpu) -> None:
    class Theirs:
        freed = False

        def __del__(self) -> None:
            Theirs.freed = True

    device = acquire_device(gpu.libraries)
    with device.current():
        gpu.stream(device.compute.handle).put(lambda: None)
        device.keep_alive(Theirs())
        device.keep_alive(object())
        assert not Theirs.freed
        device.compute.synchronize()
        device.keep_alive(object())
    assert Theirs.freed
    device.release()
    gpu.check_clean()


def test_everything_is_freed_where_the_last_wait_fails(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    there = tensor(gpu, device, np.ones(9, np.float32))
    _ = np.asarray(there)
    gpu.machine.failing["Stream.synchronize"] = 0
    with pytest.raises(BackendError, match=r"CUDA failed on GPU 0 .*because the test says so"):
        device.release()
    with pytest.raises(BackendError, match="freed with its segmenter"):
        _ = there.address
    gpu.check_clean()
