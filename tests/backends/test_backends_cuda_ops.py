"""Compare the work between the graphs on a GPU with the host's, byte by byte.

The tests run on the stand-in and, with ``pytest -m gpu``, on a GPU. NOT RUN on a GPU.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from host_kernels import host_library
from recording_cuda import Gpu

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.frame_geometry import letterbox
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.ops import CudaOps
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, to_device
from rvos_deploy.runtime.backends.host_ops import HostOps

SHAPES = [
    (1, 1, ()),
    (1, 1, (1,)),
    (1, 3, (5,)),
    (2, 1, (3,)),
    (4, 7, (7, 3)),
    (3, 4, (20, 8)),
    (2, 5, (16,)),
]
"""[E,M,...]: one row, one position, rows of odd sizes, and rows of whole vectors of 16 bytes."""
HOST = HostOps()


@pytest.fixture
def device(gpu: Gpu) -> Iterator[CudaDevice]:
    """The stand-in alone, for what it records."""
    host_library()
    held = acquire_device(gpu.libraries)
    yield held
    held.release()
    gpu.check_clean()


def numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return random.integers(1, 100, shape).astype(dtype)


def assert_same(ops: CudaOps, found: Tensor, truth: Tensor) -> None:
    (ours,), (theirs,) = ops.to_host([found]).arrays(), HOST.to_host([truth]).arrays()
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) == (found.shape, found.dtype)
    assert found.nbytes == theirs.nbytes
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_written_and_resized_as_on_the_host(
    each_device: CudaDevice, shape: tuple[int, int, tuple[int, ...]], dtype: str
) -> None:
    """Rows are written, grow, come, go and change places."""
    rows, columns, rest = shape
    ops, random = CudaOps(each_device), np.random.default_rng(rows + columns)
    ours = ops.zeros((rows, columns, *rest), dtype)
    theirs = HOST.zeros((rows, columns, *rest), dtype)
    assert isinstance(ours, DeviceTensor)
    assert_same(ops, ours, theirs)
    for step in range(12):
        rows, columns = ours.shape[:2]
        values, places = numbers(random, (rows, *rest), dtype), random.integers(0, columns, rows)
        ops.write(ours, places, to_device(each_device, values))
        HOST.write(theirs, places, values)
        assert_same(ops, ours, theirs)
        order = random.permutation(np.r_[np.arange(rows), -1, -1])[: 1 + int(random.integers(4))]
        # Growth, and now and then fewer places than there were.
        capacity = columns + 1 if step % 4 else max(1, columns // 2)
        ours, theirs = ops.resized(ours, order, capacity), HOST.resized(theirs, order, capacity)
        assert isinstance(ours, DeviceTensor)
        assert_same(ops, ours, theirs)


def test_new_rows_are_zeros(each_device: CudaDevice) -> None:
    """Pooled memory holds what was there before."""
    ops = CudaOps(each_device)
    for _ in range(3):
        value = to_device(each_device, np.full((2, 3, 5), 7, np.float16))
        none = ops.resized(value, np.array([-1, -1, -1]), 2)
        more = ops.resized(value, np.array([1]), 9)
        fresh = ops.zeros((2, 3, 5), np.float16)
        del value
        assert not np.asarray(none).any()
        assert not np.asarray(fresh).any()
        assert (np.asarray(more)[:, :3] == 7).all()
        assert not np.asarray(more)[:, 3:].any()


def test_writes_keep_the_order_of_the_stream(gpu: Gpu, device: CudaDevice) -> None:
    """Earlier work reads the old bytes, later work the new ones."""
    ops = CudaOps(device)
    target = ops.zeros((2, 3, 4), np.float32)
    assert isinstance(target, DeviceTensor)
    address, seen = target.address, []
    launched = len([entry for entry in gpu.machine.log if entry[0] == "launched"])
    for step in range(1, 6):
        values = to_device(device, np.full((2, 4), step, np.float32))
        gpu.machine.copied.update(up=0)
        gpu.machine.log.clear()
        ops.write(target, np.array([step % 3, 1]), values)
        assert [entry[:2] for entry in gpu.machine.log] == [("moved", 16)] * 2
        assert gpu.machine.copied["up"] == 0
        del values
        seen.append(ops.resized(target, np.array([0, 1]), 3))
    assert launched == 1
    assert target.address == address
    expected = np.zeros((2, 3, 4), np.float32)
    for step, found in enumerate(seen, start=1):
        expected[0, step % 3], expected[1, 1] = step, step
        np.testing.assert_array_equal(np.asarray(found), expected)
    np.testing.assert_array_equal(np.asarray(target), expected)


def test_another_librarys_values_are_kept_alive_until_they_were_copied(
    gpu: Gpu, device: CudaDevice
) -> None:
    class Theirs:
        def __init__(self, tensor: DeviceTensor) -> None:
            self.tensor, self.address = tensor, tensor.address

    ops = CudaOps(device)
    target = ops.zeros((1, 2, 4), np.uint8)
    sent = to_device(device, np.full((1, 4), 5, np.uint8))
    owner = Theirs(sent)
    values = DeviceTensor(device, (1, 4), np.uint8, owner, sent.ready, foreign=True)
    alive = weakref.ref(owner)
    ops.write(target, np.array([1]), values)
    del owner, values, sent
    gc.collect()
    assert alive() is not None
    assert (np.asarray(target)[0, 1] == 5).all()
    device.keep_alive(object())
    gc.collect()
    assert alive() is None


def test_host_arrays_beside_tensors_on_the_device(each_device: CudaDevice) -> None:
    """Every operation accepts both for each of its tensors."""
    ops, random = CudaOps(each_device), np.random.default_rng(4)
    truth = numbers(random, (3, 4, 5), "float32")
    there = to_device(each_device, truth)
    # Neither contiguous nor in NumPy's own order.
    values, places = numbers(random, (5, 3), "float32").T, np.array([3, 0, 2])
    expected = truth.copy()
    HOST.write(expected, places, values)
    ops.write(there, places, values)
    assert_same(ops, there, expected)
    here = truth.copy()
    ops.write(here, places, to_device(each_device, np.ascontiguousarray(values)))
    np.testing.assert_array_equal(here, expected)
    resized = ops.resized(here, np.array([2, -1]), 6)
    assert isinstance(resized, np.ndarray)
    np.testing.assert_array_equal(resized, HOST.resized(expected, np.array([2, -1]), 6))
    for index in (np.array([1, 1, 0]), np.array([[3, 1], [0, 0], [2, 3]])):
        for value in (here, there):
            assert_same(ops, ops.gather(value, index), HOST.gather(expected, index))
    assert ops.gather(there, np.arange(3)) is there
    first, second, third = ops.to_host([there, here, there]).arrays()
    assert all((one == expected).all() for one in (first, second, third))
    geometry = letterbox((101, 143), (96, 160))
    logits = random.standard_normal((2, geometry.padded[0] // 4, geometry.padded[1] // 4))
    logits = logits.astype(np.float32)
    (masks,) = HOST.upsample_masks(logits, geometry).arrays()
    for value in (logits, to_device(each_device, logits)):
        assert (ops.upsample_masks(value, geometry).arrays()[0] == masks).all()
        assert (np.asarray(ops.upsample_masks_on_device(value, geometry)) == masks).all()
        assert ops.finite_maps(value).arrays()[0].tolist() == [True, True]
    frame = random.integers(0, 256, (101, 143, 3), dtype=np.uint8)
    for value in (frame, to_device(each_device, frame)):
        fitted = np.asarray(ops.preprocess(value, geometry))
        assert (fitted == HOST.preprocess(frame, geometry)).all()


def test_without_kernels_the_host_does_all_of_it(gpu: Gpu) -> None:
    gpu.bindings.refusing.add("cuModuleLoadData")
    device = acquire_device(gpu.libraries)
    with pytest.warns(RuntimeWarning, match="the host does the work"):
        ops = CudaOps(device)
    random = np.random.default_rng(5)
    truth = numbers(random, (3, 4, 5), "float16")
    there = to_device(device, truth)
    target = ops.zeros((3, 4, 5), np.float16)
    places = np.array([0, 3, 1])
    ops.write(target, places, to_device(device, truth[:, 0]))
    expected = HOST.zeros((3, 4, 5), np.float16)
    HOST.write(expected, places, truth[:, 0])
    resized = ops.resized(there, np.array([2, -1, 0]), 5)
    gathered = ops.gather(there, np.array([[3, 1], [0, 0], [2, 3]]))
    pairs = [
        (target, expected),
        (resized, HOST.resized(truth, np.array([2, -1, 0]), 5)),
        (gathered, HOST.gather(truth, np.array([[3, 1], [0, 0], [2, 3]]))),
    ]
    for found, right in pairs:
        assert isinstance(found, np.ndarray)
        assert_same(ops, found, right)
    geometry = letterbox((101, 143), (96, 160))
    logits = np.ones((1, geometry.padded[0] // 4, geometry.padded[1] // 4), np.float32)
    logits[0, 0, 0] = np.nan
    logits_there, frame = to_device(device, logits), np.zeros((101, 143, 3), np.uint8)
    (masks,) = ops.upsample_masks(logits_there, geometry).arrays()
    assert (masks == HOST.upsample_masks(logits, geometry).arrays()[0]).all()
    assert ops.finite_maps(logits_there).arrays()[0].tolist() == [False]
    fitted = ops.preprocess(to_device(device, frame), geometry)
    assert (np.asarray(fitted) == HOST.preprocess(frame, geometry)).all()
    with pytest.raises(BackendError, match="cuModuleLoadData failed"):
        ops.require_device_masks()
    with pytest.raises(BackendError, match="cuModuleLoadData failed"):
        ops.upsample_masks_on_device(logits_there, geometry)
    assert [entry for entry in gpu.machine.log if entry[0] in ("launched", "moved")] == []
    del there, logits_there
    device.release()
    gpu.check_clean()
