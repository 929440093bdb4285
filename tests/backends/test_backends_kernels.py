"""Test our kernels without a GPU: PTX by NVRTC, arithmetic by g++, order on the stand-in."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from host_kernels import launch_on_host, through_bindings
from kernel_cases import random_case, random_frame, table_arguments
from numpy.typing import NDArray
from recording_cuda import Gpu

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.frame_geometry import (
    PADDING,
    FrameGeometry,
    letterbox,
    resize_frame,
    resize_weights,
    upsample_logits,
    upsample_masks,
    upsample_weights,
)
from rvos_deploy.runtime.backends.cuda import copies, nvrtc
from rvos_deploy.runtime.backends.cuda.device import acquire_device
from rvos_deploy.runtime.backends.cuda.kernels import KERNELS, kernel_ptx, number, pointer
from rvos_deploy.runtime.backends.cuda.masks import MaskUpsampler
from rvos_deploy.runtime.backends.cuda.tensor import to_device

ARCHS = (75, 80, 86, 89, 90, 100, 120)


@pytest.mark.parametrize("arch", ARCHS)
def test_ptx(arch: int, tmp_path: Path) -> None:
    ptx = kernel_ptx(arch)
    assert re.findall(r"\.entry (\w+)\(", ptx) == list(KERNELS)
    assert re.search(rf"\.target sm_{arch}\b", ptx)
    assert not re.search(r"\bfma\.", ptx), "a contraction would round unlike the host"
    for unwanted in (".local", ".shared", "bar.sync"):
        assert unwanted not in ptx
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return
    (tmp_path / "kernels.ptx").write_text(ptx)
    command = [ptxas, "-v", f"-arch=sm_{arch}", str(tmp_path / "kernels.ptx")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}


def on_host(
    kernel: str, logits: NDArray[np.float32], geometry: FrameGeometry, threads: int = 64
) -> NDArray[np.uint8]:
    """The kernel's output; bytes after it must stay as they are."""
    height, width = geometry.display
    columns = -(-width // 8) if kernel == "rvos_pack_masks" else width
    shape = (len(logits), height, columns)
    room = np.full(int(np.prod(shape)) + 64, 0xA5, np.uint8)
    tables = upsample_weights((logits.shape[1], logits.shape[2]), geometry)
    arguments = [pointer(logits.ctypes.data), *map(number, logits.shape), *table_arguments(tables)]
    arguments += [*map(number, (height, width)), pointer(room.ctypes.data)]
    blocks = -(-int(np.prod(shape)) // threads)
    launch_on_host(kernel, blocks, threads, *zip(*arguments, strict=True))
    assert (room[-64:] == 0xA5).all()
    return room[:-64].reshape(shape)


def test_the_kernels_give_display_masks_bit_by_bit() -> None:
    """Three hundred random shapes. The order of sums and the roundings are Pillow's on x86-64.
    Compilers for other machines contract Pillow's own sums, so ties may differ there.
    """
    random = np.random.default_rng(5)
    shrunk = grown = alike = 0
    for _ in range(300):
        logits, geometry = random_case(random)
        truth = upsample_masks(logits, geometry)
        found = on_host("rvos_upsample_masks", logits, geometry)
        packed = on_host("rvos_pack_masks", logits, geometry)
        assert (np.packbits(found, axis=-1) == packed).all()
        wrong = found.astype(bool) != truth
        if platform.machine() != "x86_64":
            near = np.stack([np.abs(upsample_logits(one, geometry)) for one in logits])
            wrong &= near > 1e-6 * np.abs(logits).max()
        assert not wrong.any(), (logits.shape, geometry)
        shrunk += geometry.display[0] < geometry.content[0] // 4
        grown += geometry.display[0] > geometry.content[0] // 4
        alike += geometry.display == logits.shape[1:]
    assert shrunk > 20
    assert grown > 100
    assert alike > 5


def test_against_plain_float64_on_a_frame_of_the_usual_size() -> None:
    """The truth is bilinear interpolation by its definition in float64, without Pillow. Signs may
    differ where the value is zero to within two roundings of float32, one a pass.
    """
    random = np.random.default_rng(6)
    geometry = letterbox((271, 479), (96, 160))
    logits = random.standard_normal((1, 24, geometry.padded[1] // 4)).astype(np.float32)
    wide = logits[0].astype(np.float64)

    def place(count: int, content: int, size: int):  # type: ignore[no-untyped-def]
        at = np.clip((np.arange(count) + 0.5) * content / 4 / count - 0.5, 0, size - 1)
        low = np.minimum(np.floor(at).astype(int), size - 2)
        return low, at - low

    (top, down), (left, across) = (
        place(*three) for three in zip(geometry.display, geometry.content, wide.shape, strict=True)
    )
    rows = wide[top] * (1 - down[:, None]) + wide[top + 1] * down[:, None]
    plain = rows[:, left] * (1 - across) + rows[:, left + 1] * across
    found = on_host("rvos_upsample_masks", logits, geometry)[0].astype(bool)
    decided = np.abs(plain) > 2 * 2.0**-24 * np.abs(logits).max()
    assert decided.mean() > 0.999
    assert (found == (plain > 0))[decided].all()


def fitted_on_host(
    frame: NDArray[np.uint8], geometry: FrameGeometry, threads: int = 64
) -> NDArray[np.uint8]:
    """The kernel's output; bytes after it must stay as they are."""
    shape = (1, *geometry.padded, 3)
    room = np.full(int(np.prod(shape)) + 64, 0xA5, np.uint8)
    tables = resize_weights(geometry)
    arguments = [pointer(frame.ctypes.data), number(frame.shape[1]), *table_arguments(tables)]
    colour = int.from_bytes(bytes(PADDING), "big")
    arguments += [*map(number, (*geometry.content, *geometry.padded, colour))]
    arguments.append(pointer(room.ctypes.data))
    blocks = -(-int(np.prod(geometry.padded)) // threads)
    launch_on_host("rvos_preprocess", blocks, threads, *zip(*arguments, strict=True))
    assert (room[-64:] == 0xA5).all()
    return room[:-64].reshape(shape)


def test_the_kernel_gives_resize_frame_byte_by_byte() -> None:
    """Three hundred random shapes. The arithmetic is of integers, so every compiler agrees with
    Pillow.
    """
    random = np.random.default_rng(7)
    shrunk = grown = padded = 0
    for _ in range(300):
        frame, geometry = random_frame(random)
        truth = resize_frame(frame, geometry)
        assert (fitted_on_host(frame, geometry) == truth).all(), geometry
        shrunk += geometry.display[0] > geometry.content[0]
        grown += geometry.display[0] < geometry.content[0]
        padded += geometry.padded != geometry.content
    assert shrunk > 20
    assert grown > 100
    assert padded > 100


@pytest.mark.parametrize("display", [(271, 479), (61, 110), (1080, 1920)])
def test_frames_against_plain_float64(display: tuple[int, int]) -> None:
    """The truth is a triangle of the scale's width by its definition, without Pillow. Two roundings
    to bytes, one a pass, are one half each; the fixed point adds less than 0.01.
    """
    geometry = letterbox(display, (96, 160))
    frame = np.random.default_rng(8).integers(0, 256, (*display, 3), dtype=np.uint8)

    def weights(source: int, size: int) -> NDArray[np.float64]:
        scale = source / size
        distance = np.arange(source) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale
        triangle = np.maximum(1.0 - np.abs(distance) / max(scale, 1.0), 0.0)
        return triangle / triangle.sum(axis=1, keepdims=True)

    down, across = (weights(*two) for two in zip(display, geometry.content, strict=True))
    plain = np.einsum("ys,swc->ywc", down, np.einsum("xw,swc->sxc", across, frame.astype(float)))
    height, width = geometry.content
    found = fitted_on_host(frame, geometry)[0, :height, :width]
    assert np.abs(found - plain).max() <= 1.01


def test_nan_is_background_and_infinities_keep_their_sign() -> None:
    geometry = letterbox((64, 64), (64, 64))
    logits = np.ones((1, 16, 16), np.float32)
    logits[0, :8] = np.nan
    logits[0, 8:, :8] = np.inf
    truth = upsample_masks(logits, geometry)
    assert truth[0, -1, 0]
    assert not truth[0, 0].any()
    assert (on_host("rvos_upsample_masks", logits, geometry).astype(bool) == truth).all()


def test_the_real_bindings_pass_the_kernels_arguments(tmp_path: Path) -> None:
    """cuda.bindings call a C library of ours in place of the driver's."""
    ptx = tmp_path / "kernels.ptx"
    ptx.write_text(kernel_ptx(89))
    script = Path(__file__).with_name("through_bindings.py")
    done = through_bindings("host_driver.cpp", script, tmp_path, ptx)
    assert done.stdout == "arguments arrived\n", done.stderr


def test_the_real_bindings_make_use_and_free_memory(tmp_path: Path) -> None:
    """cuda.bindings call a C library of ours, which counts what it made and what was freed."""
    script = Path(__file__).with_name("memory_through_bindings.py")
    done = through_bindings("memory_driver.cpp", script, tmp_path)
    assert done.stdout == "memory, streams and events work\n", done.stderr


def test_rows_of_nan_or_infinity_are_flagged() -> None:
    """NaN and infinity anywhere in a row are flagged; minus infinity and the largest numbers are
    not.
    """
    random = np.random.default_rng(8)
    for _ in range(100):
        height, width = (int(side) for side in random.integers(1, 40, 2))
        maps = random.standard_normal((int(random.integers(1, 4)), height, width))
        maps = (maps * 3e38 / np.abs(maps).max()).astype(np.float32)
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            maps[random.random(maps.shape) < 0.5 / width] = value
        rows = maps.shape[0] * height
        room = np.full(rows + 64, 0xA5, np.uint8)
        arguments = [pointer(maps.ctypes.data), number(rows), number(width)]
        arguments.append(pointer(room.ctypes.data))
        launch_on_host("rvos_flag_rows", -(-rows // 64), 64, *zip(*arguments, strict=True))
        assert (room[rows:] == 0xA5).all()
        wrong = (np.isnan(maps) | (maps == np.inf)).any(axis=2)
        assert (room[:rows].reshape(wrong.shape) == wrong).all()


def test_maps_on_the_gpu_are_checked_there(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    upsampler = MaskUpsampler(device)
    maps = np.zeros((5, 24, 40), np.float32)
    maps[1, 23, 39], maps[2, 0, 0], maps[3] = np.nan, np.inf, -np.inf
    there, none = to_device(device, maps), to_device(device, maps[:0])
    gpu.machine.copied.update(up=0, down=0)
    (sound,) = upsampler.finite_maps(there).arrays()
    assert (sound.dtype, sound.tolist()) == (np.bool_, [True, False, False, True, True])
    assert gpu.machine.copied == {"up": 0, "down": 5 * 24}
    (empty,) = upsampler.finite_maps(none).arrays()
    assert empty.shape == (0,)
    del there, none, upsampler
    device.release()
    gpu.check_clean()


def test_masks_are_computed_in_stream_order_and_freed(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    upsampler = MaskUpsampler(device)
    random = np.random.default_rng(1)
    held = []
    for _ in range(12):
        logits, geometry = random_case(random)
        tensor = to_device(device, logits)
        shown = upsampler.upsample(tensor, geometry)
        coming = upsampler.upsample_to_host(tensor, geometry)
        held.append((shown, coming, upsample_masks(logits, geometry)))
        del tensor
    gpu.machine.copied.update(down=0)
    for shown, coming, truth in held:
        assert (str(shown.dtype), shown.shape) == ("bool", truth.shape)
        (found,) = coming.arrays()
        assert found.dtype == np.bool_
        assert (found == truth).all()
        assert (np.asarray(shown) == truth).all()
    del held, shown, coming, upsampler
    device.release()
    gpu.check_clean()


def test_one_bit_a_pixel_is_downloaded(gpu: Gpu) -> None:
    device = acquire_device(gpu.libraries)
    geometry = letterbox((90, 157), (96, 160))
    logits = to_device(device, np.zeros((3, 24, geometry.padded[1] // 4), np.float32))
    upsampler = MaskUpsampler(device)
    upsampler.upsample_to_host(logits, geometry).arrays()
    gpu.machine.copied.update(up=0, down=0)
    upsampler.upsample_to_host(logits, geometry).arrays()
    assert gpu.machine.copied == {"up": 0, "down": 3 * 90 * 20}
    del logits, upsampler
    device.release()
    gpu.check_clean()


@pytest.mark.parametrize(
    ("dtype", "channels", "kernel"),
    [
        ("float32", 8, "rvos_copy_vectors"),
        ("float16", 8, "rvos_copy_vectors"),
        ("float32", 3, "rvos_copy_bytes"),
        ("float16", 5, "rvos_copy_bytes"),
        ("uint8", 1, "rvos_copy_bytes"),
    ],
)
def test_rows_are_gathered_and_a_tensor_is_resized_as_numpy_does(
    gpu: Gpu, dtype: str, channels: int, kernel: str
) -> None:
    """Bytes are copied, so they are equal, also from rows at odd addresses."""
    device = acquire_device(gpu.libraries)
    random = np.random.default_rng(channels)
    array = random.integers(0, 100, (3, 7, channels)).astype(dtype)
    value = to_device(device, array)
    order = np.stack([random.permutation(7) for _ in range(3)])
    ordered = copies.gather(value, order)
    truth = array[np.arange(3)[:, None], order]
    assert (np.asarray(ordered) == truth).all()
    rows = np.array([2, 0])
    assert (np.asarray(copies.gather(value, rows)) == array[rows]).all()
    resized = copies.resized(ordered, np.array([2, -1, 0]), 9)
    expected = np.zeros((3, 9, channels), dtype)
    expected[0, :7], expected[2, :7] = truth[2], truth[0]
    assert (resized.shape, resized.dtype) == (expected.shape, expected.dtype)
    assert (np.asarray(resized) == expected).all()
    # Pieces of 3 floats begin at multiples of 4 only.
    assert {entry[1] for entry in gpu.machine.log if entry[0] == "launched"} == {kernel}
    del value, ordered, resized
    device.release()
    gpu.check_clean()


def test_memory_is_not_reused_before_it_was_copied(gpu: Gpu) -> None:
    """Memory returns to the pool while the kernel that reads it is still queued."""
    device = acquire_device(gpu.libraries)
    array = np.arange(64, dtype=np.float32).reshape(2, 4, 8)
    copied, written = [], []
    for step in range(6):
        value = to_device(device, array + step)
        copied.append(copies.resized(value, np.array([0, 1]), 4))
        del value
        target = copies.zeros(device, (2, 3, 4, 8), np.float32)
        values = copies.gather(copied[-1], np.array([1, 0]))
        copies.write(target, np.array([2, 0]), values)
        written.append(target)
        del values, target
    for step, (found, other) in enumerate(zip(copied, written, strict=True)):
        assert (np.asarray(found) == array + step).all()
        expected = np.zeros((2, 3, 4, 8), np.float32)
        expected[0, 2], expected[1, 0] = array[1] + step, array[0] + step
        assert (np.asarray(other) == expected).all()
    del copied, written, found, other
    device.release()
    gpu.check_clean()


def test_refused_kernels_warn_once(gpu: Gpu) -> None:
    gpu.bindings.refusing.add("cuModuleLoadData")
    device = acquire_device(gpu.libraries)
    with pytest.warns(
        RuntimeWarning, match="the host does the work.*CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
    ):
        assert not device.has_kernels()
    gpu.bindings.refusing.clear()
    assert not device.has_kernels()
    with pytest.raises(BackendError, match="cuModuleLoadData failed with CUDA_ERROR_UNSUPPORTED"):
        device.kernels()
    device.release()
    gpu.check_clean()


def test_a_gpu_too_old_for_nvrtc_is_named() -> None:
    with pytest.raises(BackendError, match=r"compiles for compute_75 and newer, .*\(6\.1\)"):
        nvrtc.newest_arch(61)
    assert nvrtc.newest_arch(89) == 89
    assert nvrtc.newest_arch(999) == max(nvrtc.supported_archs())
