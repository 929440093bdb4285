"""Count what each way to compile the deformable-attention kernel costs; no GPU is needed.

``python -m rvos_deploy.benchmarks.studies.kernel_counts --json FILE [--readme FILE]`` compiles
every candidate, assembles it by ptxas and counts its instructions in nvdisasm's output. Beside them
stand the bytes that must move (``kernel_traffic.py``), and what both say of cards: floors, no
times. Which tactic a card prefers is decided on the card. A candidate that another one beats in
every count is no tactic (see :func:`beaten`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.benchmarks.gpu_specs import GPU_SPECS
from rvos_deploy.benchmarks.studies.kernel_traffic import (
    OFFSETS,
    WORKLOADS,
    Workload,
    memory_bytes,
    traffic,
)
from rvos_deploy.benchmarks.studies.readme_part import with_part
from rvos_deploy.benchmarks.studies.sass import (
    KINDS,
    OTHER,
    count_kinds,
    disassemble,
    find_nvdisasm,
    instructions,
    loads_in_flight,
    tool_version,
)
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.engines.plugins.ms_deform_attn.resources import assemble, find_ptxas
from rvos_deploy.engines.plugins.ms_deform_attn.spec import (
    ITEM_BYTES,
    TACTICS,
    VECTOR_BYTES,
    DType,
    KernelSpec,
    Tactic,
    block_shape,
)
from rvos_deploy.environment import versions
from rvos_deploy.files import write_text
from rvos_deploy.json_file import write_json
from rvos_deploy.runtime.backends.cuda.nvrtc import version_text

ARCHS = (80, 89, 90)
WARP = 32
REGISTERS = 64 * 1024
"""Of a multiprocessor."""
LIMITS: dict[int, tuple[int, int]] = {80: (64, 32), 89: (48, 24), 90: (64, 32)}
"""Warps and blocks of a multiprocessor (CUDA Programming Guide, compute capabilities)."""
FP32_LANES: dict[int, int] = {80: 64, 89: 128, 90: 128}
"""Of a multiprocessor; a card's clock times its multiprocessors follows from its fp32 rate."""
SCHEDULERS = 4
"""Of a multiprocessor; each issues one instruction of a warp a clock."""
L1_BYTES = 128
"""That L1 gives a clock; a shuffle or another load takes one clock of the same unit."""
CARDS: dict[str, tuple[int, int]] = {
    "A100 80GB": (80, 108),
    "RTX 4090": (89, 128),
    "L4": (89, 58),
    "H100 SXM": (90, 132),
}
"""Architecture and multiprocessors, as published."""
CARD_OF_ARCH: dict[int, str] = {80: "A100 80GB", 89: "RTX 4090", 90: "H100 SXM"}
"""The card whose multiprocessors share the blocks."""

THREADS = (64, 128, 256, 512)
CAPS: dict[int, tuple[int, ...]] = {1: (64, 128), 2: (128,)}
"""Registers of a thread by vectors; two vectors spill in 64."""
NOTHING = 0.05
"""A share that counts as no difference."""
SHOWN = (1, 3)
"""Tactics of the tables of kinds and floors: with one vector and with two."""
MAIN = "large, 480x864"
"""The workload of the types beside fp16, and of the floors."""
BEGIN, END = "<!-- begin: kernel_counts.json -->", "<!-- end: kernel_counts.json -->"


@dataclass(frozen=True)
class Count:
    """One compiled kernel, counted.

    Args:
        workload: of :data:`WORKLOADS`.
        arch: the architecture.
        kind: type of values, offsets and logits.
        tactic: how it is compiled and launched.
        number: TensorRT's, None where it is no tactic.
        registers: of a thread.
        spill_bytes: stored to and loaded from local memory.
        warps: of a multiprocessor, as registers, threads and blocks allow.
        instructions: of a thread.
        outputs: numbers that a thread writes.
        kinds: instructions by kind.
        loads_in_flight: 16-byte loads of a thread under way, the mean when one is issued.
        l2_bytes: from L2 to L1 for an output, by the place of the points.
        imbalance: blocks of the busiest multiprocessor over the mean, of one expression on the card
            of the architecture.
    """

    workload: str
    arch: int
    kind: DType
    tactic: Tactic
    number: int | None
    registers: int
    spill_bytes: int
    warps: int
    instructions: int
    outputs: int
    kinds: Mapping[str, int]
    loads_in_flight: float
    l2_bytes: Mapping[str, float]
    imbalance: float

    @property
    def per_output(self) -> float:
        """Instructions of a thread for one output."""
        return self.instructions / self.outputs

    def busiest(self, for_an_output: float) -> float:
        """Return a count for an output as the busiest multiprocessor has it."""
        return for_an_output * self.imbalance

    @property
    def flying_bytes(self) -> float:
        """Bytes of values under way on a full multiprocessor."""
        return self.warps * WARP * self.loads_in_flight * VECTOR_BYTES

    @property
    def l1_clocks(self) -> float:
        """Clocks of the load unit for one output: 16-byte loads, other loads and shuffles."""
        vectors = self.kinds.get("load of values", 0) * WARP * VECTOR_BYTES / L1_BYTES
        others = sum(self.kinds.get(kind, 0) for kind in ("shuffle", "other load", "local memory"))
        return (vectors + others) / (WARP * self.outputs)

    @property
    def issue_clocks(self) -> float:
        """Clocks of a multiprocessor to issue the instructions of one output."""
        return self.per_output / (WARP * SCHEDULERS)


def candidates() -> Iterator[Tactic]:
    """Yield every tactic that is considered."""
    for vectors, caps in CAPS.items():
        for threads in THREADS:
            for cap in caps:
                yield Tactic(threads, REGISTERS // (cap * threads), vectors)


def count_kernel(arch: int, kind: DType, workload: str, tactic: Tactic) -> Count:
    """Compile, assemble and count one kernel.

    Raises:
        PluginError: NVRTC or ptxas is missing.
        InputError: nvdisasm is missing.
    """
    work = WORKLOADS[workload]
    made = assemble(KernelSpec(arch, kind, kind, kind, work.sizes, tactic))
    found = instructions(disassemble(made.cubin))
    _, queries = block_shape(kind, work.head_width, tactic)
    bytes_of = {
        offsets: traffic(work, kind, offsets, queries).from_l2 / work.outputs for offsets in OFFSETS
    }
    return Count(
        workload=workload,
        arch=arch,
        kind=kind,
        tactic=tactic,
        number=next((n for n, one in TACTICS.items() if one == tactic), None),
        registers=made.registers,
        spill_bytes=made.spill_bytes,
        warps=resident_warps(arch, made.registers, tactic.threads),
        instructions=len(found),
        outputs=tactic.vectors * VECTOR_BYTES // ITEM_BYTES[kind],
        kinds=count_kinds(found),
        loads_in_flight=round(loads_in_flight(found), 2),
        l2_bytes={offsets: round(value, 3) for offsets, value in bytes_of.items()},
        imbalance=imbalance(work, queries, CARD_OF_ARCH[arch]),
    )


def imbalance(work: Workload, queries_of_block: int, card: str) -> float:
    """Return the blocks of a card's busiest multiprocessor over the mean of all."""
    blocks = math.ceil(work.queries / queries_of_block) * work.heads
    _, multiprocessors = CARDS[card]
    return math.ceil(blocks / multiprocessors) * multiprocessors / blocks


def resident_warps(arch: int, registers: int, threads: int) -> int:
    """Return how many warps of a kernel fit a multiprocessor."""
    most_warps, most_blocks = LIMITS[arch]
    warps = threads // WARP
    # A warp's registers are taken in units of 256: 8 a thread.
    by_registers = REGISTERS // (-(-registers // 8) * 8 * WARP) // warps
    return min(by_registers, most_warps // warps, most_blocks) * warps


def beaten(one: Count, others: Sequence[Count]) -> bool:
    """Tell whether another candidate is at least as good in every count, and better in one.

    The counts are instructions and bytes from L2 for an output, both times the imbalance, and bytes
    of values under way on a multiprocessor, which hide the latency of memory. Differences below 5 %
    are none: ptxas orders instructions that differently. A kernel that spills is beaten.
    """
    if one.spill_bytes:
        return True
    rivals = (x for x in others if x is not one and not x.spill_bytes)
    return any(_beats(rival, one) for rival in rivals)


def _beats(rival: Count, one: Count) -> bool:
    gains = [
        one.busiest(one.per_output) / rival.busiest(rival.per_output),
        one.busiest(one.l2_bytes[OFFSETS[-1]]) / rival.busiest(rival.l2_bytes[OFFSETS[-1]]),
        rival.flying_bytes / one.flying_bytes,
    ]
    return min(gains) > 1 - NOTHING and max(gains) > 1 + NOTHING


def floors(one: Count, work: Workload, card: str) -> dict[str, float]:
    """Return the least microseconds of a layer on a card: issue, load unit and memory, each alone.

    Clocks are those of the card's published fp32 rate; the busiest multiprocessor counts.
    """
    rates = next(spec.rates for spec in GPU_SPECS if spec.name == card)
    clocks = rates.fp32_flops / (2 * FP32_LANES[one.arch])  # of all multiprocessors together
    _, queries = block_shape(one.kind, work.head_width, one.tactic)
    outputs = work.outputs * imbalance(work, queries, card)
    return {
        "issue": 1e6 * outputs * one.issue_clocks / clocks,
        "load unit": 1e6 * outputs * one.l1_clocks / clocks,
        "memory": 1e6 * memory_bytes(work, one.kind) / rates.bytes_per_second,
    }


def measure() -> dict[str, Any]:
    """Count every candidate in fp16 for every workload, and the tactics for the other types."""
    counts = [
        count_kernel(arch, "fp16", workload, tactic)
        for workload in WORKLOADS
        for arch in ARCHS
        for tactic in candidates()
    ]
    others: tuple[DType, ...] = ("fp32", "bf16")
    counts += [
        count_kernel(arch, kind, MAIN, tactic)
        for kind in others
        for arch in ARCHS
        for tactic in TACTICS.values()
    ]
    work = WORKLOADS[MAIN]
    chosen = [one for one in counts if one.number is not None and one.workload == MAIN]
    return {
        "schema": "rvos-deploy/benchmark/kernel-counts/1",
        "versions": versions("cuda-bindings", "nvidia-cuda-runtime"),
        "tools": {
            "nvrtc": version_text(),
            "ptxas": tool_version(find_ptxas() or "ptxas"),
            "nvdisasm": tool_version(find_nvdisasm() or "nvdisasm"),
        },
        "workloads": {name: asdict(one) for name, one in WORKLOADS.items()},
        "kernels": [_record(one, counts) for one in counts],
        "traffic": {name: _traffic(one) for name, one in WORKLOADS.items()},
        "floors": [
            {"card": card, "kind": one.kind, "tactic": one.number, **floors(one, work, card)}
            for card, (arch, _) in CARDS.items()
            for one in chosen
            if one.arch == arch
        ],
    }


def _record(one: Count, counts: Sequence[Count]) -> dict[str, Any]:
    key = (one.workload, one.arch, one.kind)
    group = [x for x in counts if (x.workload, x.arch, x.kind) == key]
    return {
        **asdict(one),
        "per_output": one.per_output,
        "kinds_per_output": {kind: count / one.outputs for kind, count in one.kinds.items()},
        "flying_bytes": one.flying_bytes,
        "issue_clocks": one.issue_clocks,
        "load_unit_clocks": one.l1_clocks,
        "beaten": beaten(one, group),
    }


def _traffic(work: Workload) -> list[dict[str, Any]]:
    """Return the bytes in fp16 by the shape of a block; the first is that of the kernel before."""
    blocks = ((4, 8), (16, 1), (32, 1), (64, 1), (128, 1), (256, 1))
    return [
        {
            "offsets": offsets,
            "queries": queries,
            "heads": heads,
            **asdict(traffic(work, "fp16", offsets, queries, heads)),
        }
        for offsets in OFFSETS
        for queries, heads in blocks
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """Return the README's tables of a record."""
    parts = (_counts_table, _kinds_table, _traffic_table, _floors_table)
    return "\n\n".join("\n".join(part(record)) for part in parts)


def _counts_table(record: Mapping[str, Any]) -> Iterator[str]:
    columns = [(MAIN, arch) for arch in ARCHS]
    columns += [(name, 89) for name in record["workloads"] if name != MAIN]
    titles = [f"{name.split(',')[0]}, {CARD_OF_ARCH[arch]}" for name, arch in columns]
    yield f"| vectors, threads, registers | tactic | {' | '.join(titles)} |"
    yield "|---|---|" + "---|" * len(columns)
    rows: dict[tuple[int, int, int], dict[tuple[str, int], Any]] = {}
    for one in record["kernels"]:
        if one["kind"] == "fp16":
            tactic = one["tactic"]
            cap = REGISTERS // (tactic["threads"] * tactic["blocks"])
            row = rows.setdefault((tactic["vectors"], tactic["threads"], cap), {})
            row[one["workload"], one["arch"]] = one
    for (vectors, threads, cap), row in rows.items():
        number = row[columns[0]]["number"] or ""
        cells = [_count_cell(row[column]) for column in columns]
        yield f"| {vectors}, {threads}, {cap} | {number} | {' | '.join(cells)} |"


def _count_cell(one: Mapping[str, Any]) -> str:
    if one["spill_bytes"]:
        return f"spills {one['spill_bytes']} B"
    instructions_, l2_bytes = one["per_output"], one["l2_bytes"][OFFSETS[-1]]
    text = (
        f"{instructions_ * one['imbalance']:.0f}, {l2_bytes * one['imbalance']:.0f}, "
        f"{one['flying_bytes'] / 1024:.0f}"
    )
    return f"({text})" if one["beaten"] else text


def _kinds_table(record: Mapping[str, Any]) -> Iterator[str]:
    chosen = [
        one
        for one in record["kernels"]
        if (one["workload"], one["arch"]) == (MAIN, 89) and one["number"] in SHOWN
    ]
    names = [kind for kind in (*KINDS, OTHER) if any(kind in one["kinds"] for one in chosen)]
    titles = " | ".join(f"{one['kind']}, tactic {one['number']}" for one in chosen)
    yield f"| instructions an output, sm_89 | {titles} |"
    yield "|---|" + "---|" * len(chosen)
    for name in names:
        cells = [f"{one['kinds_per_output'].get(name, 0):.1f}" for one in chosen]
        yield f"| {name} | {' | '.join(cells)} |"
    cells = [f"**{one['per_output']:.0f}**" for one in chosen]
    yield f"| all | {' | '.join(cells)} |"


def _traffic_table(record: Mapping[str, Any]) -> Iterator[str]:
    by_block: dict[tuple[int, int], list[str]] = {}
    titles: list[str] = []
    for name, rows in record["traffic"].items():
        for offsets in OFFSETS:
            titles.append(f"{name.split(',')[0]}, {offsets}")
            for row in rows:
                if row["offsets"] == offsets:
                    cells = by_block.setdefault((row["queries"], row["heads"]), [])
                    cells.append(f"{row['from_l2'] / 1e6:.1f}")
    yield f"| MB from L2, fp16: a block's queries x heads | {' | '.join(titles)} |"
    yield "|---|" + "---|" * len(titles)
    for (queries, heads), cells in by_block.items():
        yield f"| {queries} x {heads} | {' | '.join(cells)} |"
    every = [row for rows in record["traffic"].values() for row in _first_rows(rows)]
    for title, key in (("asked for by threads", "requested"), ("from memory, once", "memory")):
        yield f"| {title} | " + " | ".join(f"{row[key] / 1e6:.1f}" for row in every) + " |"


def _first_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [next(row for row in rows if row["offsets"] == offsets) for offsets in OFFSETS]


def _floors_table(record: Mapping[str, Any]) -> Iterator[str]:
    cards = list(dict.fromkeys(row["card"] for row in record["floors"]))
    yield f"| least microseconds: issue, load unit, memory | {' | '.join(cards)} |"
    yield "|---|" + "---|" * len(cards)
    for kind in ("fp32", "fp16", "bf16"):
        for number in SHOWN:
            cells = [
                f"{row['issue']:.1f}, {row['load unit']:.1f}, {row['memory']:.1f}"
                for row in record["floors"]
                if (row["kind"], row["tactic"]) == (kind, number)
            ]
            yield f"| {kind}, tactic {number} | {' | '.join(cells)} |"


def with_tables(readme: str, record: Mapping[str, Any]) -> str:
    """Return a README whose part between the two comments is the record's tables.

    Raises:
        InputError: the comments are missing.
    """
    return with_part(readme, BEGIN, END, markdown(record))


@with_error_lines
def main(
    result: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show a result; count nothing.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rewrite the tables of this README.")
    ] = None,
) -> None:
    """Count the instructions and the bytes of the deformable-attention kernel's variants."""
    record = measure() if result is None else json.loads(result.read_text(encoding="utf-8"))
    if json_file is not None:
        write_json(json_file, record)
    if readme is not None:
        write_text(readme, with_tables(readme.read_text(encoding="utf-8"), record))
    typer.echo(markdown(record))


if __name__ == "__main__":
    typer.run(main)
