"""Test the work on the device on the stand-in and, with ``pytest -m gpu``, on a real GPU.

NOT RUN on a GPU: the development machine has none.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import random_case, random_frame

from rvos_deploy.graph_io.frame_geometry import resize_frame, upsample_masks
from rvos_deploy.runtime.backends.cuda import copies
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.foreign_arrays import from_dlpack
from rvos_deploy.runtime.backends.cuda.frames import FrameResizer
from rvos_deploy.runtime.backends.cuda.libraries import import_cuda
from rvos_deploy.runtime.backends.cuda.masks import MaskUpsampler
from rvos_deploy.runtime.backends.cuda.tensor import DeviceCopy, to_device


def test_masks_equal_the_hosts_bit_by_bit(each_device: CudaDevice) -> None:
    upsampler, random = MaskUpsampler(each_device), np.random.default_rng(21)
    for _ in range(40):
        logits, geometry = random_case(random)
        there = to_device(each_device, logits)
        truth = upsample_masks(logits, geometry)
        (packed,) = upsampler.upsample_to_host(there, geometry).arrays()
        assert (packed == truth).all(), (logits.shape, geometry)
        assert (np.asarray(upsampler.upsample(there, geometry)) == truth).all()


def test_frames_equal_the_hosts_byte_by_byte(each_device: CudaDevice) -> None:
    resizer, random = FrameResizer(each_device), np.random.default_rng(23)
    for _ in range(40):
        frame, geometry = random_frame(random)
        fitted = resizer.resize(to_device(each_device, frame), geometry)
        assert (np.asarray(fitted) == resize_frame(frame, geometry)).all(), geometry


@pytest.mark.parametrize(("dtype", "channels"), [("float16", 256), ("float32", 20), ("uint8", 3)])
def test_rows_are_gathered_and_written_into_memory(
    each_device: CudaDevice, dtype: str, channels: int
) -> None:
    random = np.random.default_rng(22)
    array = random.integers(0, 100, (5, 20, channels)).astype(dtype)
    order = np.stack([random.permutation(20) for _ in array])
    ordered = copies.gather(to_device(each_device, array), order)
    truth = array[np.arange(5)[:, None], order]
    memory = copies.zeros(each_device, (5, 3, 20, channels), dtype)
    places = np.array([2, 0, 1, 1, 0])
    copies.write(memory, places, ordered)
    grown = copies.resized(memory, np.array([4, -1, 1]), 4)
    wanted = np.zeros(memory.shape, dtype)
    wanted[np.arange(5), places] = truth
    expected = np.zeros(grown.shape, dtype)
    expected[0, :3], expected[2, :3] = wanted[4], wanted[1]
    downloaded = DeviceCopy([ordered, memory, grown]).arrays()
    for found, right in zip(downloaded, (truth, wanted, expected), strict=True):
        assert (found == right).all()


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["dlpack", "interface"])
def test_a_late_kernel_of_pytorch_reads_what_it_was_given(how: str) -> None:
    """The tensor is dropped while the kernel that reads it waits on PyTorch's own stream."""
    pytest.importorskip("cuda.bindings.driver")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    device = acquire_device(import_cuda())
    old, new = np.full(2**20, 1, np.float32), np.full(2**20, 2, np.float32)
    stream = torch.cuda.Stream()
    for _ in range(20):
        ours = to_device(device, old)
        with torch.cuda.stream(stream):
            read = torch.from_dlpack(ours) if how == "dlpack" else torch.as_tensor(ours, device=0)
            torch.cuda._sleep(20_000_000)
            copy = read.clone()
        del ours, read
        written = [to_device(device, new) for _ in range(3)]
        torch.cuda.synchronize()
        assert bool((copy == 1).all())
        del written
    device.release()


@pytest.mark.gpu
def test_pytorch_reads_our_tensors_and_we_read_its_own() -> None:
    pytest.importorskip("cuda.bindings.driver")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    device = acquire_device(import_cuda())
    array = np.arange(24).reshape(2, 3, 4) % 2 == 0
    ours = to_device(device, array)
    for read in (torch.from_dlpack(ours), torch.as_tensor(ours, device="cuda")):
        assert read.data_ptr() == ours.address
        assert (read.cpu().numpy() == array).all()
    theirs = torch.arange(12, device="cuda").reshape(3, 4)
    borrowed = from_dlpack(device, theirs)
    assert borrowed.address == theirs.data_ptr()
    assert (np.asarray(borrowed) == theirs.cpu().numpy()).all()
    torch.cuda.synchronize()
    del ours, borrowed
    device.release()
