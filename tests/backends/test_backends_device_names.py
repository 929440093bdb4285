"""Test that every back end uses the GPU that it is told, and no other one."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from recording_cuda import Gpu

from rvos_deploy.bundle.engine_sidecar import EngineError, plan_file
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.graph_io.probe import probe_clip
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.dlpack import CUDA
from rvos_deploy.runtime.backends.cuda.foreign_arrays import from_dlpack
from rvos_deploy.runtime.backends.cuda.tensor import to_device
from rvos_deploy.runtime.backends.device_names import check_device, cuda_name, cuda_ordinal
from rvos_deploy.runtime.backends.onnxruntime import binding
from rvos_deploy.runtime.backends.onnxruntime.device_arrays import cuda_from_dlpack
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

if TYPE_CHECKING:
    from recording_tensorrt import FakeTensorRt

SETTINGS = StreamSettings(size=(32, 64), fallback="top1", masks="device")


def test_names_are_those_of_pytorch() -> None:
    assert [cuda_ordinal(name) for name in ("cuda", "cuda:0", "cuda:7", "cuda:12")] == [0, 0, 7, 12]
    for name in ("cpu", "auto", "cuda:", "cuda:-1", "cuda:x", "cuda1", "CUDA", "cuda:1 ", "gpu:1"):
        assert cuda_ordinal(name) is None
    assert [cuda_name(number) for number in (0, 1)] == ["cuda", "cuda:1"]


def test_the_command_line_refuses_other_names() -> None:
    for name in ("auto", "cpu", "cuda", "cuda:1"):
        assert check_device(name) == name
    with pytest.raises(InputError, match=r"--device 'cuda:x' is unknown; known: auto, cpu, cuda, "):
        check_device("cuda:x")


def retained(gpu: Gpu) -> set[int]:
    return {entry[1] for entry in gpu.machine.log if entry[0] == "context retained"}


def test_tensorrt_runs_on_the_gpu_that_is_named(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    gpu.machine.gpus = 2
    with load(engines.path, backend="tensorrt", device="cuda:1") as segmenter:
        assert segmenter.backend.describe()["device"] == "cuda:1"
        with segmenter.stream(["the disc"], SETTINGS) as stream:
            (result,) = stream.push(probe_clip(1)[0])
        masks: Any = result.device_masks
        assert masks.__dlpack_device__() == (CUDA, 1)
        del masks, result
    assert retained(gpu) == {1}
    with pytest.raises(BackendError, match="no NVIDIA GPU 2 that CUDA can use"):
        make_backend("tensorrt", "cuda:2")
    with pytest.raises(BackendError, match="tensorrt has no device 'cuda:x'; known: cuda, cuda:N"):
        make_backend("tensorrt", "cuda:x")
    gpu.check_clean()


def test_a_refused_engine_is_built_again_on_the_gpu_that_was_named(
    gpu: Gpu, tensorrt: FakeTensorRt, engines: Bundle
) -> None:
    """On the first GPU it would be refused again."""
    gpu.machine.gpus = 2
    backend = make_backend("tensorrt", "cuda:1")
    with backend.open(engines) as session, pytest.raises(EngineError) as refused:
        session.graphs["backbone"].run({"frame": np.zeros((1, 4096, 32, 3), np.uint8)})
    assert refused.value.command.endswith(" --device cuda:1")
    plan_file(engines.path, "tensorrt", "backbone").write_bytes(b"another")
    for device, ends in (("cuda", False), ("cuda:1", True)):
        with pytest.raises(EngineError) as changed:
            make_backend("tensorrt", device).open(engines)
        assert changed.value.command.startswith(f"rvos-deploy build-engine {engines.path} ")
        assert changed.value.command.endswith(" --device cuda:1") is ends
        assert ("--device" in changed.value.command) is ends


def test_two_gpus_of_one_process_have_a_device_each(gpu: Gpu) -> None:
    gpu.machine.gpus = 2
    first, second = (acquire_device(gpu.libraries, ordinal) for ordinal in (0, 1))
    assert first is not second
    tensor = to_device(first, np.zeros(3, np.float32))
    with pytest.raises(InputError, match="this array is not on GPU 1, where the graphs run; move"):
        from_dlpack(second, tensor)
    del tensor
    first.release()
    second.release()
    gpu.check_clean()


class Elsewhere:
    """An array on the second GPU, whose owner must not be asked to wait for a stream of the
    first.
    """

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, 1

    def __dlpack__(self, **_: Any) -> object:
        raise AssertionError("the streams of two GPUs")


def test_arrays_of_another_gpu_are_refused_before_any_stream_is_told(cuda_modules: Gpu) -> None:
    device = acquire_device(cuda_modules.libraries)
    with pytest.raises(InputError, match="not on GPU 0, where the graphs run; move it there"):
        from_dlpack(device, Elsewhere())
    device.release()
    with pytest.raises(InputError, match="not on GPU 0, where the graphs run; move it there"):
        cuda_from_dlpack(Elsewhere())
    cuda_modules.check_clean()


def test_onnxruntime_finds_arrays_on_its_own_gpu(cuda_modules: Gpu) -> None:
    cuda_modules.machine.gpus = 2
    context = cuda_modules.pycuda.Device(0).retain_primary_context()
    context.push()
    memory = cuda_modules.pycuda.mem_alloc(12)
    cuda_modules.pycuda.Context.pop()
    interface = {"shape": (3,), "typestr": "<f4", "data": (int(memory), False), "version": 3}
    theirs = SimpleNamespace(__cuda_array_interface__={**interface, "stream": None})
    cuda_modules.bindings.ordinal_of_pointers = 1
    with pytest.raises(InputError, match="not on GPU 0"):
        cuda_from_dlpack(theirs)
    cuda_modules.machine.log.clear()
    found = cuda_from_dlpack(theirs, 1)
    np.asarray(found.reshape(1, 3))
    assert {entry[1] for entry in cuda_modules.machine.log if entry[0] == "device"} == {1}
    context.push()
    memory.free()
    cuda_modules.pycuda.Context.pop()
    cuda_modules.machine.retained -= 1


class RecordingBinding:
    """Stands in for ONNX Runtime's I/O binding, and records on which device a tensor is bound."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []

    def bind_ortvalue_input(self, name: str, value: tuple[str, int]) -> None:
        self.places.append(value)

    def bind_input(self, name: str, device: str, number: int, *rest: object) -> None:
        self.places.append((device, number))

    def bind_output(self, name: str, device: str, number: int) -> None:
        self.places.append((device, number))

    def get_outputs(self) -> list[object]:
        return []


def test_onnxruntime_binds_everything_on_the_gpu_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    recording = RecordingBinding()
    session = SimpleNamespace(io_binding=lambda: recording, run_with_iobinding=lambda binding: None)
    copy = SimpleNamespace(ortvalue_from_numpy=lambda array, device, number: (device, number))
    monkeypatch.setattr(onnxruntime, "OrtValue", copy)
    there = binding.CudaArray(
        SimpleNamespace(dtype=np.dtype("u1"), memory=SimpleNamespace(address=0)),  # type: ignore[arg-type]
        (2,),
        1,
    )
    inputs = {"host": np.zeros(2, np.uint8), "device": there}
    outputs = [SimpleNamespace(name="out")]
    with pytest.raises(ValueError, match="zip"):
        binding.run_bound(session, ("cuda", 1), inputs, outputs)  # type: ignore[arg-type]
    assert recording.places == [("cuda", 1)] * 3


@pytest.mark.gpu
def test_the_second_gpu_is_used(engines: Bundle) -> None:
    """Needs two GPUs; CUDA_VISIBLE_DEVICES may give them by UUID."""
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip(f"one GPU is shown (CUDA_VISIBLE_DEVICES={os.getenv('CUDA_VISIBLE_DEVICES')})")
    with load(Path(engines.path), backend="onnxruntime", device="cuda:1") as segmenter:
        before = torch.cuda.mem_get_info(0)[0]
        with segmenter.stream(["the disc"], StreamSettings(size=(32, 64))) as stream:
            stream.push(probe_clip(1)[0])
        assert torch.cuda.mem_get_info(0)[0] == before
