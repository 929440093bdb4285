"""Test that memory is not used again while another library's queued work still reads it.

The stand-in's streams run as late as they may, so a forgotten wait reads overwritten bytes.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from recording_cuda import Gpu

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.dlpack import Capsule
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, to_device

if TYPE_CHECKING:
    from recording_cuda import FakeStream

OLD, NEW = np.arange(6, dtype=np.float32), np.full(6, 9, np.float32)


@pytest.fixture
def device(gpu: Gpu) -> Iterator[CudaDevice]:
    device = acquire_device(gpu.libraries)
    yield device
    device.release()
    gpu.check_clean()


class Consumer:
    """Another library, whose kernel on a stream of its own reads a tensor late."""

    def __init__(self, gpu: Gpu, handle: int | None = None) -> None:
        self.gpu, self.read = gpu, np.zeros(0, np.float32)
        self.stream: FakeStream = gpu.pycuda.Stream()
        if handle is not None:  # one of CUDA's own, which the stand-in has not by itself
            gpu.machine.streams[handle] = self.stream

    def take(self, tensor: DeviceTensor, how: Any) -> None:
        """Take the tensor, queue a kernel that reads it, and drop it."""
        if how == "interface":
            address = tensor.__cuda_array_interface__["data"][0]  # type: ignore[index]
        else:
            asked = self.stream.handle if how == "own" else how
            capsule = Capsule(tensor.__dlpack__(stream=asked))
            address = capsule.address

        def kernel() -> None:
            self.read = self.gpu.machine.bytes_at(address, OLD.nbytes).view(np.float32).copy()

        self.stream.put(kernel)


def write_new(device: CudaDevice) -> int:
    """Queue a write into a new buffer by a kernel of ours, run it, and return its address."""
    with device.lock, device.current():
        buffer = device.allocate(NEW.nbytes)
        address = buffer.address
        memory = device.driver._machine.bytes_at(address, NEW.nbytes)
        device.compute.put(lambda: memory.__setitem__(slice(None), NEW.view(np.uint8)))
        device.compute.synchronize()
    return address


@pytest.mark.parametrize("how", ["own", None, 0, 1, 2, -1, "interface"])
def test_a_late_kernel_of_a_consumer_reads_what_it_was_given(
    gpu: Gpu, device: CudaDevice, how: Any
) -> None:
    """The tensor is dropped on both sides; the kernel that reads it is still queued."""
    with device.current():
        consumer = Consumer(gpu, {None: 1, 0: 1, 1: 1, 2: 2}.get(how))
        tensor = to_device(device, OLD)
        address = tensor.address
        consumer.take(tensor, how)
        del tensor
        addresses = [write_new(device) for _ in range(3)]
        consumer.stream.synchronize()
        assert (consumer.read == OLD).all()
        # Where the stream is known, the address is used again at once, and the work waits.
        assert (address in addresses) is (how in ("own", None, 0, 1))
        del consumer


def test_the_export_of_a_frames_masks_is_one_wait_a_frame(gpu: Gpu, device: CudaDevice) -> None:
    """Memory is flat although the consumer is always behind, and no event is left over."""
    with device.current():
        consumer = Consumer(gpu)
        for _ in range(50):
            tensor = to_device(device, OLD)
            consumer.take(tensor, "own")
            consumer.take(tensor, "own")
            del tensor
        assert device.allocated_bytes() <= 4 * 512
        assert gpu.bindings.events <= 4
        consumer.stream.synchronize()
        del consumer


@pytest.mark.parametrize("how", ["interface", -1])
def test_memory_of_unknown_readers_is_flat_and_the_host_waits_seldom(
    gpu: Gpu, device: CudaDevice, how: Any
) -> None:
    with device.current():
        consumer = Consumer(gpu)
        for _ in range(90):
            tensor = to_device(device, OLD)
            consumer.take(tensor, how)
            del tensor
        waits = sum(entry[0] == "waited for the whole GPU" for entry in gpu.machine.log)
        assert 9 <= waits <= 11
        assert device.allocated_bytes() <= 12 * 512
        assert (consumer.read == OLD).all()
        del consumer


def test_a_short_gpu_waits_for_every_reader_before_memory_is_freed(
    gpu: Gpu, device: CudaDevice
) -> None:
    with device.current():
        consumers = [Consumer(gpu) for _ in range(2)]
        for consumer, how in zip(consumers, ("own", "interface"), strict=True):
            tensor = to_device(device, OLD)
            consumer.take(tensor, how)
            del tensor
        gpu.machine.memory = 4 * 512
        device.allocate(3 * 512)
        assert all((consumer.read == OLD).all() for consumer in consumers)
        del consumer, consumers


def test_a_stream_in_capture_or_gone_makes_the_reader_unknown(gpu: Gpu, device: CudaDevice) -> None:
    """An event of a capture would draw the compute stream into it; a dead stream takes no event."""
    with device.current():
        for spoil in ("capture", "gone"):
            consumer = Consumer(gpu)
            tensor = to_device(device, OLD)
            capsule = Capsule(tensor.__dlpack__(stream=consumer.stream.handle))
            if spoil == "capture":
                consumer.stream.captured = []
            else:
                del consumer
            block = tensor._memory.block  # type: ignore[attr-defined]
            del capsule
            assert block.unknown_readers
            assert block.readers == {}
            if spoil == "capture":
                consumer.stream.captured = None
                del consumer
            del tensor


def test_another_thread_without_a_context_may_release_the_export(
    gpu: Gpu, device: CudaDevice
) -> None:
    with device.current():
        consumer = Consumer(gpu)
        tensor = to_device(device, OLD)
        kept = [Capsule(tensor.__dlpack__(stream=consumer.stream.handle))]
    block = tensor._memory.block  # type: ignore[attr-defined]
    releasing = threading.Thread(target=kept.clear)
    releasing.start()
    releasing.join()
    assert list(block.readers) == [consumer.stream.handle]
    assert not block.unknown_readers
    with device.current():
        del consumer


def test_an_export_outlives_the_device(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    with device.current():
        consumer = Consumer(gpu)
        tensor = to_device(device, OLD)
        capsule = Capsule(tensor.__dlpack__(stream=consumer.stream.handle))
        del consumer
    device.release()
    del capsule
    gc.collect()
    with pytest.raises(BackendError, match="freed with its segmenter"):
        _ = tensor.address
    del tensor
    gpu.check_clean()
