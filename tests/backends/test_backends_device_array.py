"""Test arrays of other libraries: DLPack capsules of NumPy and PyTorch, everything else on
stand-ins.
"""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from recording_cuda import Gpu

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import letterbox
from rvos_deploy.runtime.backends.cuda.device import CudaDevice, acquire_device
from rvos_deploy.runtime.backends.cuda.dlpack import CPU, CUDA, Capsule, make_capsule
from rvos_deploy.runtime.backends.cuda.foreign_arrays import from_dlpack, is_device_array
from rvos_deploy.runtime.backends.cuda.tensor import DeviceTensor, to_device
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

if TYPE_CHECKING:
    from recording_cuda import FakeStream
    from recording_tensorrt import FakeTensorRt


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64", "bool"])
def test_a_capsule_is_read_as_its_library_wrote_it(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for owner in (array, torch.from_numpy(array)):
        capsule = Capsule(owner.__dlpack__())
        assert capsule.shape == (2, 3, 4)
        assert capsule.dtype == array.dtype
        assert capsule.address == array.ctypes.data
        assert (capsule.kind, capsule.ordinal) == (1, 0)
        assert capsule.strides in (None, array.strides)


def test_strides_and_offsets_of_views() -> None:
    array = np.arange(60, dtype=np.int32).reshape(5, 12)
    view = torch.from_numpy(array)[1:4, 2::3]
    capsule = Capsule(view.__dlpack__())
    assert capsule.address == array[1:4, 2::3].ctypes.data
    assert capsule.strides == array[1:4, 2::3].strides


def test_the_owner_is_kept_exactly_as_long_as_the_capsule() -> None:
    array = np.zeros(100)
    before = sys.getrefcount(array)
    capsule = Capsule(array.__dlpack__())
    assert sys.getrefcount(array) > before
    del capsule
    gc.collect()
    assert sys.getrefcount(array) == before


def test_consumed_and_invalid_capsules_are_refused() -> None:
    capsule = np.zeros(3).__dlpack__()
    kept = Capsule(capsule)
    with pytest.raises(InputError, match="no capsule that can be used"):
        Capsule(capsule)
    with pytest.raises(InputError, match="no capsule that can be used"):
        Capsule("capsule")
    assert kept.shape == (3,)


def test_types_without_a_numpy_type_are_refused() -> None:
    with pytest.raises(InputError, match=r"type code 4 with 16 bits .* no NumPy type"):
        Capsule(torch.zeros(3, dtype=torch.bfloat16).__dlpack__())


class Ours:
    """NumPy's memory in a capsule of ours."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0

    def __dlpack__(self, **_: Any) -> object:
        array = self.array
        return make_capsule(array.ctypes.data, array.shape, array.dtype, array, CPU)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64", "bool"])
def test_other_libraries_read_and_release_our_capsules(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    before = sys.getrefcount(array)
    ours = Ours(array)
    taken = [np.from_dlpack(ours), torch.from_dlpack(ours), Capsule(ours.__dlpack__())]
    assert (taken[0] == array).all()
    assert taken[0].ctypes.data == array.ctypes.data
    assert (taken[1].numpy() == array).all()
    assert (taken[2].shape, taken[2].dtype, taken[2].strides) == (array.shape, array.dtype, None)
    assert sys.getrefcount(array) == before + 4
    taken.clear()
    unused = ours.__dlpack__()
    assert sys.getrefcount(array) == before + 2
    del unused, ours
    gc.collect()
    assert sys.getrefcount(array) == before


class OnGpu:
    """An array in stand-in device memory, written by another library's stream when it runs."""

    def __init__(self, gpu: Gpu, array: np.ndarray) -> None:
        context = gpu.pycuda.Device(0).retain_primary_context()
        context.push()
        self.memory = gpu.pycuda.mem_alloc(array.nbytes)
        self.stream: FakeStream = gpu.pycuda.Stream()
        gpu.pycuda.Context.pop()
        self.array, self.context, self.gpu = array, context, gpu
        target = int(self.memory)

        def compute() -> None:
            gpu.machine.bytes_at(target, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        self.stream.put(compute)

    def free(self) -> None:
        self.context.push()
        self.stream.synchronize()
        self.memory.free()
        del self.stream
        self.gpu.pycuda.Context.pop()
        self.gpu.machine.retained -= 1


class Interface(OnGpu):
    version = 3
    strides: Any = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (int(self.memory), False),
            "strides": self.strides,
            "version": self.version,
            "stream": self.stream.handle,
        }


class DlPack(OnGpu):
    """Its capsule is NumPy's, with device and address put in."""

    device = (2, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int) -> object:
        with_context = self.gpu.bindings
        event = self.gpu.pycuda.Event()
        event.record(self.stream)
        with_context.cuStreamWaitEvent(stream, event, 0)
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
        managed = pointer(capsule, b"dltensor")
        ctypes.c_void_p.from_address(managed).value = int(self.memory)
        ctypes.c_int32.from_address(managed + 8).value = self.device[0]
        ctypes.c_int32.from_address(managed + 12).value = self.device[1]
        return capsule


@pytest.fixture
def device(gpu: Gpu) -> Iterator[CudaDevice]:
    device = acquire_device(gpu.libraries)
    yield device
    device.release()


@pytest.mark.parametrize("kind", [Interface, DlPack])
def test_computation_waits_for_the_owners_stream(
    gpu: Gpu, device: CudaDevice, kind: type[OnGpu]
) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    theirs = kind(gpu, array)
    assert is_device_array(theirs)
    tensor = from_dlpack(device, theirs)
    assert (tensor.shape, tensor.dtype, tensor.address) == ((3, 4), array.dtype, int(theirs.memory))
    # The download waits for the tensor's own event alone: it must come after the owner's work.
    assert (np.asarray(tensor) == array).all()
    assert gpu.bindings.events == 0
    del tensor
    theirs.free()


def test_the_owner_of_an_array_interface_is_kept_alive(gpu: Gpu, device: CudaDevice) -> None:
    theirs = Interface(gpu, np.zeros(3, np.uint8))
    alive = weakref.ref(theirs)
    tensor = from_dlpack(device, theirs)
    del theirs
    gc.collect()
    owner = alive()
    assert owner is not None
    del tensor
    owner.free()


def test_unreadable_arrays_are_one_line(gpu: Gpu, device: CudaDevice) -> None:
    theirs = Interface(gpu, np.zeros((4, 6), np.float32))
    theirs.strides = (48, 8)
    with pytest.raises(InputError, match=r"must be contiguous, found strides \[48, 8\]"):
        from_dlpack(device, theirs)
    theirs.strides = (24, 4)
    assert from_dlpack(device, theirs).shape == (4, 6)
    gpu.bindings.ordinal_of_pointers = 1
    with pytest.raises(InputError, match=r"not on GPU 0, where"):
        from_dlpack(device, theirs)
    theirs.free()
    other = DlPack(gpu, np.zeros(3, np.uint8))
    other.device = (2, 1)
    with pytest.raises(InputError, match=r"not on GPU 0"):
        from_dlpack(device, other)
    other.free()


def test_device_arrays_are_recognised() -> None:
    assert not is_device_array(np.zeros(3))
    assert not is_device_array(torch.zeros(3))
    assert not is_device_array([1, 2])


@pytest.mark.parametrize("kind", [Interface, DlPack])
@pytest.mark.parametrize("size", [(96, 160), (60, 110), (211, 390), (90, 31)])
def test_a_stream_reads_frames_on_the_gpu_in_place(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, kind: type[OnGpu], size: tuple[int, int]
) -> None:
    """Frames of the network's own size, smaller, larger and upright ones are resized on the GPU."""
    frame = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    settings = StreamSettings(size=(96, 160), fallback="top1")
    with load(engines.path, backend="tensorrt") as segmenter:
        theirs = kind(gpu, frame)
        with segmenter.stream(["the disc"], settings) as stream:
            for same in (frame, theirs):  # what is sent once a size
                stream.push(same)
        with segmenter.stream(["the disc"], settings) as stream:
            gpu.machine.copied.update(up=0, down=0)
            (truth,) = stream.push(frame)
            crossed = dict(gpu.machine.copied)
        with segmenter.stream(["the disc"], settings) as stream:
            gpu.machine.copied.update(up=0, down=0)
            (found,) = stream.push(theirs)
            network_input = 3 * math.prod(letterbox(size, (96, 160)).padded)
            assert gpu.machine.copied["up"] == crossed["up"] - network_input
            assert gpu.machine.copied["down"] == crossed["down"]
            with pytest.raises(InputError, match=r"must be uint8 \[H, W, 3\]"):
                stream.push(Interface(gpu, np.zeros((4, 4), np.uint8)))
        assert (found.masks == truth.masks).all()
        assert found.masks.shape == (1, *size)
    theirs.free()


def test_without_kernels_the_host_resizes_frames_on_the_gpu(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (60, 110, 3), np.uint8)
    settings = StreamSettings(size=(96, 160), fallback="top1")
    gpu.bindings.refusing.add("cuModuleLoadData")
    with pytest.warns(RuntimeWarning, match="the host does the work"):
        segmenter = load(engines.path, backend="tensorrt")
    theirs = Interface(gpu, frame)
    with segmenter:
        with segmenter.stream(["the disc"], settings) as stream:
            (truth,) = stream.push(frame)
        with segmenter.stream(["the disc"], settings) as stream:
            (found,) = stream.push(theirs)
        assert (found.masks == truth.masks).all()
    theirs.free()


def test_a_host_back_end_reads_host_tensors_and_refuses_others(gpu: Gpu, engines: Bundle) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    settings = StreamSettings(size=(96, 160), fallback="top1")
    with load(engines.path, backend="onnxruntime", threads=1) as segmenter:
        with segmenter.stream(["the disc"], settings) as stream:
            (truth,) = stream.push(frame)
        with segmenter.stream(["the disc"], settings) as stream:
            (found,) = stream.push(torch.from_numpy(frame))
            assert (found.masks == truth.masks).all()
            with pytest.raises(InputError, match=r"cannot be read on the host.*--backend tensorrt"):
                stream.push(Interface(gpu, frame))
            with pytest.raises(InputError, match=r"must be a NumPy array, .* found list"):
                stream.push([1, 2])


def test_results_can_be_read_by_other_libraries(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle, device: CudaDevice
) -> None:
    theirs = Interface(gpu, np.ones((2, 2), np.float32))
    tensor = from_dlpack(device, theirs)
    assert isinstance(tensor, DeviceTensor)
    assert from_dlpack(device, tensor) is tensor
    assert tensor.reshape(4).shape == (4,)
    assert tensor.reshape(4).foreign
    del tensor
    theirs.free()


@pytest.mark.parametrize("stream", [None, 1, -1, "own"])
def test_dlpack_waits_until_a_tensor_is_computed(
    gpu: Gpu, device: CudaDevice, stream: int | str | None
) -> None:
    tensor = to_device(device, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert tensor.__dlpack_device__() == (CUDA, 0)
    done: list[str] = []
    device.compute.put(lambda: done.append("computed"))
    with device.current():
        theirs = gpu.pycuda.Stream()
        # The default stream, which the stand-in has not by itself.
        gpu.machine.streams[1] = theirs
        asked = theirs.handle if stream == "own" else stream
        capsule = Capsule(tensor.__dlpack__(stream=asked))
        theirs.put(lambda: done.append("read"))
        theirs.synchronize()
    assert done == (["read"] if stream == -1 else ["computed", "read"])
    assert (capsule.kind, capsule.ordinal) == (CUDA, 0)
    assert (capsule.shape, str(capsule.dtype)) == ((2, 3), "float32")
    assert capsule.address == tensor.address
    # The memory is not another's while the capsule's tensor is read.
    taken = tensor.address
    del tensor
    other = device.allocate(24)
    assert other.address != taken
    del capsule
    # Of a consumer that synchronises by itself (-1), nothing says when it has done so.
    assert (device.allocate(24).address == taken) is (stream != -1)
    with device.current():
        del theirs


def test_dlpack_refuses_copies_and_other_devices(device: CudaDevice) -> None:
    tensor = to_device(device, np.zeros(3, np.float32))
    for wish in ({"copy": True}, {"dl_device": (CPU, 0)}):
        with pytest.raises(BufferError, match=r"numpy\.asarray"):
            tensor.__dlpack__(**wish)
