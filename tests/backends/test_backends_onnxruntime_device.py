"""Test arrays on the GPU as inputs of ONNX Runtime.

The stand-in tests that they are found and waited for. ONNX Runtime on the CPU tests binding by
address.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_cuda import FakeStream, Gpu

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.runtime.backends.cuda.foreign_arrays import ForeignArray
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend, OnnxRuntimeGraph
from rvos_deploy.runtime.backends.onnxruntime.binding import run_bound
from rvos_deploy.runtime.backends.onnxruntime.device_arrays import (
    CudaArray,
    CudaArrayOps,
    cuda_from_dlpack,
)
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings


class Theirs:
    """An array that another library's stream has yet to compute."""

    version, strides = 3, None

    def __init__(self, gpu: Gpu, array: np.ndarray, *, on_default: bool = False) -> None:
        self.gpu, self.array = gpu, array
        machine = gpu.machine
        self.context = gpu.pycuda.Device(0).retain_primary_context()
        self.context.push()
        self.memory = gpu.pycuda.mem_alloc(array.nbytes)
        self.stream: FakeStream = gpu.pycuda.Stream()
        gpu.pycuda.Context.pop()
        self.handle = 1 if on_default else self.stream.handle
        machine.streams[self.handle] = self.stream
        target = int(self.memory)
        self.stream.put(
            lambda: machine.bytes_at(target, array.nbytes).__setitem__(
                slice(None), array.reshape(-1).view(np.uint8)
            )
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        told = {"shape": self.array.shape, "typestr": self.array.dtype.str, "strides": self.strides}
        return {
            **told,
            "data": (int(self.memory), False),
            "version": self.version,
            **({"stream": self.handle} if self.version >= 3 else {}),
        }

    def free(self) -> None:
        self.context.push()
        self.memory.free()
        del self.stream
        self.gpu.pycuda.Context.pop()
        self.gpu.machine.retained -= 1


@pytest.fixture
def driver(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", gpu.bindings)
    return gpu


@pytest.mark.parametrize(("version", "on_default"), [(3, False), (2, True)])
def test_the_host_waits_until_the_array_is_computed(
    driver: Gpu, version: int, on_default: bool
) -> None:
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    theirs = Theirs(driver, array, on_default=on_default)
    theirs.version = version
    found = cuda_from_dlpack(theirs)
    assert found.address == int(theirs.memory)
    assert (found.shape, str(found.dtype), found.nbytes) == ((2, 3, 4), "float16", 48)
    # Read as ONNX Runtime will: without asking any stream.
    there = driver.machine.bytes_at(found.address, 48).view(np.float16)
    assert (there == array.ravel()).all()
    assert (np.asarray(found.reshape(6, 4)) == array.reshape(6, 4)).all()
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(found, copy=False)
    del found
    theirs.free()
    driver.check_clean()


def test_dlpack_arrays_are_waited_for_on_the_default_stream(driver: Gpu) -> None:
    from rvos_deploy.runtime.backends.cuda.dlpack import CUDA, make_capsule

    array = np.arange(5, dtype=np.int64)
    theirs = Theirs(driver, array, on_default=True)
    asked: list[int] = []

    class Speaks:
        def __dlpack_device__(self) -> tuple[int, int]:
            return CUDA, 0

        def __dlpack__(self, *, stream: int) -> object:
            asked.append(stream)
            return make_capsule(int(theirs.memory), array.shape, array.dtype, theirs, CUDA)

    found = cuda_from_dlpack(Speaks())
    assert asked == [1]
    assert (driver.machine.bytes_at(found.address, 40).view(np.int64) == array).all()
    del found
    theirs.free()
    driver.check_clean()


def test_unreadable_arrays_are_one_line_and_leave_nothing(
    driver: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Theirs(driver, np.zeros((4, 6), np.float32))
    driver.bindings.ordinal_of_pointers = 1
    with pytest.raises(InputError, match="not on GPU 0, where the graphs run"):
        cuda_from_dlpack(theirs)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"cuda-bindings is not installed.*rvos-deploy\[gpu\]"):
        cuda_from_dlpack(theirs)
    theirs.free()
    driver.check_clean()


def test_onnxruntime_reads_inputs_at_their_address(tiny_bundle: Path) -> None:
    """The inputs lie in the CPU's memory, where ONNX Runtime reads them without a copy."""

    class Memory:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.address = array, array.ctypes.data

    bundle = open_bundle(tiny_bundle)
    inputs = probe_inputs(bundle.graphs["mask_head"], {"E": 2, "H": 32, "W": 64}, 0)
    with OnnxRuntimeBackend(threads=1).open(bundle, ["mask_head"]) as session:
        graph = session.graphs["mask_head"]
        assert isinstance(graph, OnnxRuntimeGraph)
        truth = graph.run(inputs)["mask_logits"]
        borrowed = {
            name: CudaArray(ForeignArray(x.shape, x.dtype, Memory(x), None), x.shape)
            for name, x in inputs.items()
        }
        found = run_bound(graph._session, ("cpu", 0), borrowed, graph.spec.outputs)
        assert (np.asarray(found["mask_logits"]) == truth).all()
        inputs["mask_features"][:] = 0
        again = run_bound(graph._session, ("cpu", 0), borrowed, graph.spec.outputs)
        assert (np.asarray(again["mask_logits"]) != truth).any()


@pytest.mark.parametrize(("size", "downloads"), [((96, 160), 0), ((60, 110), 60 * 110 * 3)])
def test_a_stream_reads_frames_on_the_gpu(
    driver: Gpu,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    downloads: int,
) -> None:
    """ONNX Runtime runs on the CPU in place of CUDA, and follows addresses into the stand-in."""
    frame = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    settings = StreamSettings(size=(96, 160), fallback="top1")
    with load(tiny_bundle, threads=1) as segmenter:
        with segmenter.stream(["the disc"], settings) as stream:
            (truth,) = stream.push(frame)

        class There:
            def __init__(self, borrowed: CudaArray) -> None:
                self.address = driver.machine.pointer(borrowed.address)

        def run(self, inputs, axes):  # type: ignore[no-untyped-def]
            real = {
                name: CudaArray(ForeignArray(x.shape, x.dtype, There(x), None), x.shape)
                if isinstance(x, CudaArray)
                else x
                for name, x in inputs.items()
            }
            return run_bound(self._session, ("cpu", 0), real, self.spec.outputs)

        monkeypatch.setattr(OnnxRuntimeGraph, "_run", run)
        # What a session of the CUDA provider has.
        segmenter._session.ops = CudaArrayOps()
        theirs = Theirs(driver, frame)
        with segmenter.stream(["the disc"], settings) as stream:
            (found,) = stream.push(theirs)
            wrong = Theirs(driver, np.zeros((4, 4), np.uint8))
            with pytest.raises(InputError, match=r"must be uint8 \[H, W, 3\]"):
                stream.push(wrong)
        wrong.free()
    assert (found.masks == truth.masks).all()
    assert driver.machine.copied["down"] == downloads
    theirs.free()
    driver.check_clean()
