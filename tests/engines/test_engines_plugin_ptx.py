"""Compile the kernel by NVRTC, and assemble it by ptxas where that is found. No GPU, no driver."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rvos_deploy.engines.plugins.ms_deform_attn import compile as compiler
from rvos_deploy.engines.plugins.ms_deform_attn.compile import compile_ptx
from rvos_deploy.engines.plugins.ms_deform_attn.resources import ARCHS, assemble, find_ptxas
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    KERNEL_NAME,
    TACTICS,
    TYPES,
    DType,
    KernelSpec,
    LayerSizes,
    PluginError,
    Tactic,
    block_shape,
    tactics_for,
)
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.cuda.nvrtc import load_nvrtc, supported_archs

Types = tuple[DType, DType, DType]
_VECTOR_LOAD = re.compile(r"ld\.global(?:\.\w+)*\.v4\.[a-z]+32")
_VECTOR_STORE = re.compile(r"st\.global(?:\.\w+)*\.v4\.[a-z]+32")


LARGE = LayerSizes(heads=8, head_width=32, levels=3, points=4)
SIZES = (
    LARGE,
    LayerSizes(heads=8, head_width=16, levels=3, points=4),
    LayerSizes(heads=8, head_width=32, levels=4, points=4),
    LayerSizes(heads=3, head_width=24, levels=2, points=3),
)
"""Of ``large``, ``tiny`` and ``onlinerefer-r50``, and one whose heads are no power of two."""


def check_ptx(spec: KernelSpec) -> None:
    ptx = compile_ptx(spec)
    samples = spec.sizes.levels * spec.sizes.points
    row, _ = block_shape(spec.value, spec.sizes.head_width, spec.tactic)
    group = min(row & -row, 32)
    assert f".visible .entry {KERNEL_NAME}(" in ptx
    assert re.search(rf"\.target sm_{spec.arch}\b", ptx)
    # Four corners of each point, all by 16 bytes; loops and divisions by variables are gone.
    assert len(_VECTOR_LOAD.findall(ptx)) == 4 * spec.tactic.vectors * samples
    assert len(_VECTOR_STORE.findall(ptx)) == spec.tactic.vectors
    assert not re.search(r"\b(div|rem)\.[us]", ptx)
    # A maximum and a sum over the group, then five words of each point.
    exchanged = 5 * samples + 2 * (group.bit_length() - 1) if group > 1 else 0
    assert len(re.findall(r"shfl\.sync", ptx)) == exchanged
    # Each thread reads its own logits and offsets, once.
    own = -(-samples // group)
    logit = r"ld\.global\.nc\.f32" if spec.logits == "fp32" else r"ld\.global\.nc\.[ub]16"
    assert len(re.findall(logit, ptx)) == own
    assert ".local" not in ptx, "an array that did not become registers"
    assert ".shared" not in ptx
    assert "bar.sync" not in ptx
    assert not re.search(r"\.f64\b", ptx)
    # 8 parameters: 5 inputs, 2 scalars, 1 output, in TensorRT's order.
    sizes = re.findall(r"\.param \.(u64|u32)(?: \.ptr[^,\n]*)? " + KERNEL_NAME, ptx)
    assert sizes == ["u64"] * 5 + ["u32"] * 2 + ["u64"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_ptx(arch: int, types: Types) -> None:
    for tactic in (TACTICS[1], TACTICS[4]):  # the others differ in launch bounds: see the slow test
        check_ptx(KernelSpec(arch, *types, LARGE, tactic))


@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
def test_ptx_of_other_layers(sizes: LayerSizes) -> None:
    for types in (TYPES[0], TYPES[1]):
        for number in tactics_for(types[0], sizes.head_width):
            check_ptx(KernelSpec(80, *types, sizes, TACTICS[number]))


def check_resources(spec: KernelSpec) -> None:
    found = assemble(spec)
    assert found.spill_bytes == 0, spec
    # A block must find room in a multiprocessor's 64 Ki registers.
    assert found.registers * spec.tactic.threads <= 65536
    print(f"sm_{spec.arch} {spec}: {found.registers} registers")


needs_ptxas = pytest.mark.skipif(find_ptxas() is None, reason="no ptxas on this machine")


@needs_ptxas
@pytest.mark.parametrize("arch", ARCHS)
def test_no_spills(arch: int) -> None:
    for types in (TYPES[0], TYPES[1], TYPES[5]):
        for tactic in (TACTICS[1], TACTICS[4]):
            check_resources(KernelSpec(arch, *types, LARGE, tactic))


@needs_ptxas
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_all_tactics(arch: int, types: Types) -> None:
    for sizes in SIZES if arch == 89 else (LARGE,):
        for number in tactics_for(types[0], sizes.head_width):
            spec = KernelSpec(arch, *types, sizes, TACTICS[number])
            check_ptx(spec)
            check_resources(spec)


def test_a_spec_is_compiled_once() -> None:
    spec = KernelSpec(80, *TYPES[1], LARGE, TACTICS[1])
    same = KernelSpec(80, *TYPES[1], LayerSizes(8, 32, 3, 4), Tactic(64, 8))
    assert compile_ptx(spec) is compile_ptx(same)


def test_wide_heads_leave_out_tactics_with_small_blocks() -> None:
    assert tactics_for("fp16", 32) == list(TACTICS)
    assert tactics_for("fp16", 1024) == [2, 3, 4, 5]
    assert tactics_for("fp32", 1024) == [3, 4, 5]
    assert tactics_for("fp16", 24) == [1]  # three vectors are not pairs


def test_an_unknown_architecture_is_refused() -> None:
    spec = KernelSpec(52, *TYPES[0], LARGE, TACTICS[1])
    with pytest.raises(BackendError, match=r"compile for compute_52; it needs one of 75, 80"):
        compile_ptx(spec)
    assert 90 in supported_archs()


def test_unknown_types_are_refused() -> None:
    with pytest.raises(PluginError, match="values in fp32, sampling offsets in fp16"):
        KernelSpec(80, "fp32", "fp16", "fp32", LARGE, TACTICS[1])


def test_missing_headers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_include_candidates", lambda: iter([Path("/nowhere")]))
    spec = KernelSpec(87, *TYPES[0], LARGE, TACTICS[1])
    with pytest.raises(PluginError, match=r"cuda_fp16.h is in none of /nowhere; pip install 'rvos"):
        compile_ptx(spec)


def test_missing_nvrtc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    load_nvrtc.cache_clear()
    with pytest.raises(BackendError, match=r"NVRTC cannot be .*; pip install 'rvos-deploy\["):
        supported_archs()
    load_nvrtc.cache_clear()


def test_a_broken_source_shows_the_compilers_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "kernel.cu"
    broken.write_text("no CUDA at all\n")
    monkeypatch.setattr(compiler, "SOURCE", broken)
    spec = KernelSpec(88, *TYPES[0], LARGE, TACTICS[1])
    with pytest.raises(BackendError, match=r"kernel\.cu\(1\): error"):
        compile_ptx(spec)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_driver_the_architecture_must_be_given() -> None:
    with pytest.raises(PluginError, match=r"cannot be read .* or give register_plugin\(arch=...\)"):
        compiler.device_arch()
