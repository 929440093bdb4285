"""Test the count of the kernel's instructions and the model of its traffic."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.benchmarks.studies import kernel_counts, kernel_traffic, sass
from rvos_deploy.benchmarks.studies.kernel_counts import Count, beaten, floors, resident_warps
from rvos_deploy.benchmarks.studies.kernel_traffic import (
    OFFSETS,
    WORKLOADS,
    Workload,
    memory_bytes,
    traffic,
)
from rvos_deploy.engines.plugins.ms_deform_attn.resources import assemble, find_ptxas
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    TACTICS,
    TYPES,
    KernelSpec,
    LayerSizes,
    Tactic,
)
from rvos_deploy.errors import InputError

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/kernel_counts.json"
LISTING = textwrap.dedent(
    """
    \t.text.rvos_ms_deform_attn:
            /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
            /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;
            /*0020*/                   LDG.E.128.CONSTANT R8, [R2.64+0x200] ;
            /*0030*/                   SHFL.IDX PT, R20, R21, 0x1, 0x1c1f ;
            /*0040*/              @!P1 BRA `(.L_x_0) ;
            /*0050*/                   HADD2.F32 R22, -RZ, R5.H0_H0 ;
    .L_x_0:
            /*0060*/                   FFMA R23, R20.reuse, R22, R23 ;
            /*0070*/                   LDG.E.128.CONSTANT R12, [R2.64+0x400] ;
            /*0080*/                   MUFU.EX2 R24, R25 ;
            /*0090*/                   FADD R26, R11, R12 ;
            /*00a0*/                   STG.E.128 [R6.64], R24 ;
            /*00b0*/                   EXIT ;
    .L_x_1:
            /*00c0*/                   BRA `(.L_x_1);
            /*00d0*/                   NOP;
    """
)

needs_tools = pytest.mark.skipif(
    find_ptxas() is None or sass.find_nvdisasm() is None, reason="no ptxas or no nvdisasm"
)


def test_instructions_are_counted_by_kind_up_to_the_end() -> None:
    found = sass.instructions(LISTING)
    assert [one.guarded for one in found][:2] == [False, True]
    assert sass.count_kinds(found) == {
        "load of values": 3,
        "branch": 2,
        "move": 1,
        "shuffle": 1,
        "half": 1,
        "multiply-add": 1,
        "special function": 1,
        "float": 1,
        "store": 1,
    }


def test_a_load_is_under_way_until_its_first_use() -> None:
    """R4 is read before the third load, R8 and R12 after it: 1, 2 and 2 are under way."""
    assert sass.loads_in_flight(sass.instructions(LISTING)) == pytest.approx(5 / 3)


def test_a_loop_is_refused() -> None:
    """Its instructions run more often than they stand there."""
    with pytest.raises(InputError, match="instruction 8 branches back"):
        sass.instructions(LISTING.replace("MUFU.EX2 R24, R25", "BRA `(.L_x_0)"))


def test_what_is_no_kernel_is_refused() -> None:
    with pytest.raises(InputError, match="has no EXIT"):
        sass.instructions("no kernel at all\n")


@needs_tools
@pytest.mark.parametrize(("number", "vectors", "group"), [(1, 1, 4), (4, 2, 2)])
def test_the_kernel_has_the_instructions_that_its_source_says(
    number: int, vectors: int, group: int
) -> None:
    sizes = LayerSizes(heads=8, head_width=32, levels=3, points=4)
    made = assemble(KernelSpec(80, *TYPES[1], sizes, TACTICS[number]))
    kinds = sass.count_kinds(sass.instructions(sass.disassemble(made.cubin)))
    samples = 12
    assert kinds["load of values"] == 4 * samples * vectors
    assert kinds["shuffle"] == 5 * samples + 2 * (group.bit_length() - 1)
    assert kinds["store"] == vectors
    assert "local memory" not in kinds
    # One conversion and one multiply-add for each corner and channel, and little else of them.
    products = 4 * samples * 8 * vectors
    assert products <= kinds["multiply-add"] <= 1.05 * products
    assert products <= kinds["half"] <= 1.05 * products


def test_resident_warps_follow_from_registers_threads_and_blocks() -> None:
    assert resident_warps(80, 64, 128) == 32
    assert resident_warps(80, 32, 128) == 64
    assert resident_warps(89, 40, 128) == 48  # 51 by the registers, 48 by the limit
    assert resident_warps(90, 57, 128) == 32  # 57 are taken as 64
    assert resident_warps(90, 96, 512) == 16  # 21 by the registers, whole blocks of 16
    assert resident_warps(89, 24, 32) == 24  # by the limit of blocks


def made_count(**changes: object) -> Count:
    count = Count(
        workload="tiny, 256x448",
        arch=89,
        kind="fp16",
        tactic=Tactic(128, 8),
        number=None,
        registers=64,
        spill_bytes=0,
        warps=32,
        instructions=1600,
        outputs=8,
        kinds={"load of values": 48, "shuffle": 64, "multiply-add": 1488},
        loads_in_flight=4.0,
        l2_bytes=dict.fromkeys(OFFSETS, 40.0),
        imbalance=1.0,
    )
    return replace(count, **changes)  # type: ignore[arg-type]


def test_a_candidate_is_beaten_by_one_that_is_nowhere_worse() -> None:
    one = made_count()
    assert not beaten(one, [one])
    assert not beaten(one, [one, made_count(instructions=1560)])  # no difference
    assert beaten(one, [one, made_count(instructions=1500)])
    assert beaten(one, [one, made_count(loads_in_flight=5.0)])
    assert not beaten(one, [one, made_count(instructions=1500, loads_in_flight=3.0)])
    assert not beaten(one, [one, made_count(instructions=1500, spill_bytes=8)])
    assert not beaten(one, [one, made_count(instructions=1500, imbalance=1.1)])
    assert beaten(one, [one, made_count(l2_bytes=dict.fromkeys(OFFSETS, 30.0))])
    assert beaten(made_count(spill_bytes=8), [])


def test_floors_follow_from_counts_and_published_rates() -> None:
    """By hand: the RTX 4090 runs 82.6e12 / 256 clocks a second, over all its multiprocessors."""
    work = Workload(((16, 16),), heads=8, head_width=32)
    # 32 queries a block: 64 blocks for 128 multiprocessors, of which half have none.
    outputs, clocks = 2 * 256 * 8 * 32, 82.6e12 / 256
    found = floors(made_count(), work, "RTX 4090")
    assert found["issue"] == pytest.approx(1e6 * outputs * (1600 / 8) / 128 / clocks)
    assert found["load unit"] == pytest.approx(1e6 * outputs * (48 * 4 + 64) / 256 / clocks)
    assert found["memory"] == pytest.approx(1e6 * memory_bytes(work, "fp16") / 1008e9)


def test_the_busiest_multiprocessor_counts() -> None:
    work = Workload(((30, 30),), heads=8, head_width=32)
    assert kernel_counts.imbalance(work, 900, "A100 80GB") == pytest.approx(108 / 8)
    # 29 blocks for each head: 232 on 108 multiprocessors, at most 3.
    assert kernel_counts.imbalance(work, 32, "A100 80GB") == pytest.approx(3 * 108 / 232)


def test_memory_bytes_are_every_tensor_once() -> None:
    work = Workload(((4, 6), (2, 3)), heads=2, head_width=8, points=4)
    tensors = [(30, 2, 8), (30, 2, 2, 4, 2), (30, 2, 8), (30, 2 * 8)]
    wanted = 2 * sum(int(np.prod(shape)) for shape in tensors) + 4 * (30 * 2 + 2 * 2)
    assert memory_bytes(work, "fp16") == wanted


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize(("queries", "heads"), [(4, 2), (7, 1)])
@pytest.mark.parametrize("width", [4, 16, 48])
def test_sectors_from_l2_against_a_walk_over_every_address(
    offsets: str, queries: int, heads: int, width: int
) -> None:
    """Heads of a quarter sector, of one sector and of three."""
    work = Workload(((3, 5), (4, 4)), heads=2, head_width=width, points=2)
    pixels = kernel_traffic._sampled_pixels(work, kernel_traffic._offsets(work, offsets))
    touched: set[tuple[object, ...]] = set()
    requested = 0
    for (query, head, _), pixel in np.ndenumerate(pixels):
        block = (query // queries, head // heads)
        row = query * work.heads + head
        for name, size in (("offsets", 16), ("logits", 8)):
            for at in range(row * size, row * size + size):
                touched.add((block, name, at // 32))
        if pixel < 0:
            continue
        start = (int(pixel) * work.heads + head) * width * 2
        requested += width * 2
        for at in range(start, start + width * 2):
            touched.add((block, "value", at // 32))
    found = traffic(work, "fp16", offsets, queries, heads)
    assert found.requested == requested
    assert found.from_l2 == 32 * len(touched)


def test_pixels_are_those_around_the_points() -> None:
    """One level of whole pixels: the first point of head 0 is one pixel to the right."""
    work = Workload(((4, 5),), heads=4, head_width=8, points=1)
    offsets = kernel_traffic._offsets(work, "start of training")
    pixels = kernel_traffic._sampled_pixels(work, offsets).reshape(20, 4, 4)
    assert {8, 13} <= set(pixels[7, 0].tolist())  # of the pixel at (2, 1)
    assert -1 in pixels[4, 0]  # beside the right border


def test_every_tactic_is_a_candidate() -> None:
    assert set(TACTICS.values()) <= set(kernel_counts.candidates())


def test_the_readme_has_the_committed_counts() -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    assert set(record["workloads"]) == set(WORKLOADS)
    readme = (ROOT / "engines/README.md").read_text(encoding="utf-8")
    assert kernel_counts.with_tables(readme, record) == readme


def test_the_tactics_are_the_candidates_that_no_other_beats_everywhere() -> None:
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    counted: set[int] = set()
    kept = {
        Tactic(**one["tactic"])
        for one in record["kernels"]
        if one["kind"] == "fp16" and not one["beaten"]
    }
    for one in record["kernels"]:
        if one["number"] is not None:
            assert Tactic(**one["tactic"]) == TACTICS[one["number"]]
            assert one["spill_bytes"] == 0
            counted.add(one["number"])
    assert counted == set(TACTICS)
    assert kept == set(TACTICS.values())
