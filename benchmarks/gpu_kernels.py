"""Time deformable attention alone on a GPU: our kernel and others, in turn, on the same tensors.

``python -m rvos_deploy.benchmarks.gpu_kernels [--operator DIR]``

The contenders are our kernel with every tactic, ``grid_sample`` in PyTorch (eager, compiled, and
compiled with ``mode="reduce-overhead"``), the operator of Deformable-DETR where it is installed or
builds, NVIDIA's plugin of TensorRT, and a device copy, whose bandwidth is the ceiling. The last
two operators leave softmax and locations to their caller, so their times exclude them. Bytes are
those that must move at least once: each input and the output. The caches serve most reads of the
four pixels of each sample.

NOT RUN: it needs a GPU. The tests run the record on the CPU, with a stand-in of ``torch.cuda``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.benchmarks.deformable_case import (
    HEAD_WIDTH,
    HEADS,
    POINTS,
    Case,
    make_case,
)
from rvos_deploy.benchmarks.deformable_operators import nvidia_plugin, official_operator
from rvos_deploy.benchmarks.gpu_clocks import Read, clock_reader, watching
from rvos_deploy.benchmarks.gpu_timing import Contender, LaunchTimer, LaunchTimes, PreparedLaunches
from rvos_deploy.benchmarks.rounds import in_turn, make_each, spread_of
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.engines.plugins.ms_deform_attn.launch import Sizes, launch, primary_context
from rvos_deploy.engines.plugins.ms_deform_attn.spec import TACTICS, DType, LayerSizes, Tactic
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.gpu import gpu_uuid

KINDS: tuple[DType, ...] = ("fp32", "fp16", "bf16")
ROUNDS = 5
COPIED = 2**28
LEAST_FLUSH = 2**26
"""Bytes that a flush writes at least; some cards have caches of 50 MB and more."""


def makers(case: Case, operator: Path | None = None) -> Mapping[str, Callable[[], Contender]]:
    """Return what makes each contender, by name; making one may fail.

    Args:
        case: the tensors.
        operator: the folder ``models/ops`` of a clone of Deformable-DETR, to be built.
    """
    return {
        **{
            f"tactic {number}: {tactic}": partial(_ours, case, tactic)
            for number, tactic in TACTICS.items()
        },
        "grid_sample": lambda: Contender(_grid_sample(case)),
        "grid_sample, torch.compile": partial(_compiled, case, None),
        "grid_sample, reduce-overhead": partial(_compiled, case, "reduce-overhead"),
        "Deformable-DETR's operator": lambda: Contender(
            official_operator(case.inputs, case.levels, operator)
        ),
        "MultiscaleDeformableAttnPlugin_TRT": lambda: Contender(nvidia_plugin(case.inputs)),
        "device copy": partial(_copy, case),
    }


def _ours(case: Case, tactic: Tactic) -> Contender:
    """Return a launch of our kernel. NOT RUN."""
    import torch

    value, _, _, offsets, _ = case.inputs
    output = torch.empty(case.output_shape, dtype=value.dtype, device=value.device)
    batch, pixels = value.shape[:2]
    layer = LayerSizes(HEADS, HEAD_WIDTH, len(case.levels), POINTS)
    sizes = Sizes(batch, pixels, offsets.shape[1], layer)
    pointers = tuple(tensor.data_ptr() for tensor in case.inputs)
    types = (case.kind, case.kind, case.kind)

    def run() -> Any:
        stream = torch.cuda.current_stream().cuda_stream
        launch(types, sizes, pointers, output.data_ptr(), tactic, stream=stream)
        return output

    run()  # compiles and loads, so that what is missing is known now
    return Contender(run)


def _grid_sample(case: Case) -> Callable[[], Any]:
    """Return PyTorch's form; numbers as level shapes need no host round trip."""
    from rvos_deploy.networks.modules.ms_deform_attn import eager_ms_deform_attn

    value, _, *rest = case.inputs
    return lambda: eager_ms_deform_attn(value, case.levels, *rest)


def _compiled(case: Case, mode: str | None) -> Contender:
    """Return PyTorch's form, compiled. ``reduce-overhead`` has CUDA graphs of its own."""
    import torch

    from rvos_deploy.networks.modules.ms_deform_attn import eager_ms_deform_attn

    compiled: Any = torch.compile(eager_ms_deform_attn, mode=mode, fullgraph=True, dynamic=False)
    value, _, *rest = case.inputs
    return Contender(lambda: compiled(value, case.levels, *rest), captured=mode is None)


def _copy(case: Case) -> Contender:
    import torch

    source = torch.empty(COPIED, dtype=torch.uint8, device=case.inputs[0].device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return Contender(run)


@dataclass(frozen=True)
class _Timed:
    """A contender that is ready, and how far its output is from PyTorch's."""

    launches: PreparedLaunches
    difference: float | None


def time_case(
    cuda: Any,
    case: Case,
    rounds: int = ROUNDS,
    *,
    read: Read | None = None,
    operator: Path | None = None,
    launches: int | None = None,
) -> dict[str, Any]:
    """Time every contender that is available here, in turn, with its data cached and flushed.

    Args:
        cuda: ``torch.cuda``.
        case: the tensors.
        rounds: at least three.
        read: reads the GPU's clock meanwhile; None: nothing does.
        operator: see :func:`makers`.
        launches: of a batch; None: 100.

    Returns:
        What is ready for JSON: ``timings`` with all rounds, ``missing`` with the reason of each
        contender that could not run, and ``clocks``.
    """
    import torch

    with torch.inference_mode():
        flush = _flush(cuda, case)
        timer = LaunchTimer(cuda, flush, **({} if launches is None else {"launches": launches}))
        wanted = _grid_sample(case)()
        ready, missing = make_each(
            {
                name: partial(_ready, timer, make, wanted)
                for name, make in makers(case, operator).items()
            }
        )
        with watching(read) as clocks:
            found, failed = in_turn(ready, rounds, lambda timed, _: timer.measure(timed.launches))
    return {
        "bytes": case.moved,
        "rounds": rounds,
        "timings": [
            _row(name, rows, ready[name].difference, _moved(name, case))
            for name, rows in found.items()
        ],
        "missing": {**missing, **failed},
        "clocks": clocks,
    }


def _flush(cuda: Any, case: Case) -> Callable[[], object]:
    import torch

    device = case.inputs[0].device
    cache = int(cuda.get_device_properties(device).L2_cache_size)
    buffer = torch.empty(max(2 * cache, LEAST_FLUSH), dtype=torch.uint8, device=device)
    return buffer.zero_


def _ready(timer: LaunchTimer, make: Callable[[], Contender], wanted: Any) -> _Timed:
    contender = make()
    output = contender.launch()
    difference = None if output is None else _difference(output, wanted)
    return _Timed(timer.prepare(contender), difference)


def _difference(output: Any, wanted: Any) -> float:
    found = output.reshape(wanted.shape).float() - wanted.float()
    return float(found.abs().max())


def _moved(name: str, case: Case) -> int:
    return 2 * COPIED if name == "device copy" else case.moved


def _row(
    name: str, rounds: list[LaunchTimes], difference: float | None, moved: int
) -> dict[str, Any]:
    warm, flushed = (
        spread_of([getattr(times, kind) for times in rounds]) for kind in ("warm", "flushed")
    )
    return {
        "name": name,
        "milliseconds": warm,
        "flushed_milliseconds": flushed,
        "gigabytes_per_second": moved / warm["p50"] / 1e6,
        "difference": difference,
    }


def time_kinds(
    kinds: tuple[DType, ...] = KINDS, *, operator: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Time every type on the first GPU. NOT RUN.

    Raises:
        BackendError: there is no GPU, or PyTorch has no CUDA.
    """
    from rvos_deploy.benchmarks.gpu_rates import require_torch_cuda

    torch = require_torch_cuda()
    read, reason = _reader()
    found: dict[str, dict[str, Any]] = {}
    with primary_context():
        for kind in kinds:
            found[kind] = time_case(torch.cuda, make_case(kind), read=read, operator=operator)
            if reason is not None:
                found[kind]["clocks"] = {"reason": reason}
    return found


def _reader() -> tuple[Read | None, str | None]:
    try:
        return clock_reader(gpu_uuid()), None
    except BackendError as error:
        return None, str(error)


@with_error_lines
def main(
    operator: Annotated[
        Path | None,
        typer.Option(
            "--operator", metavar="DIR", help="models/ops of a clone of Deformable-DETR, to build."
        ),
    ] = None,
) -> None:
    """Time deformable attention by every available kernel, in fp32, fp16 and bf16."""
    for kind, case in time_kinds(operator=operator).items():
        for row in case["timings"]:
            warm, flushed = row["milliseconds"], row["flushed_milliseconds"]
            typer.echo(
                f"{kind}  {row['name']:<60} {warm['p50']:8.4f} ms (spread {warm['spread']:.1%}), "
                f"flushed {flushed['p50']:8.4f} ms, {row['gigabytes_per_second']:.0f} GB/s"
            )
        for name, reason in case["missing"].items():
            typer.echo(f"{kind}  {name}: not run ({reason})")


if __name__ == "__main__":
    typer.run(main)
