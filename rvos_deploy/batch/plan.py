"""Choose how many workers there are, and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rvos_deploy.batch.cluster import Shares
from rvos_deploy.batch.worker import SegmenterOptions
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.sinks.registry import STANDARD_OUTPUT, parse_choices

_DEFAULT_CPUS = 4
_LEAST_MASK_BUDGET = 64 * 2**20
_GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")


def choose_shares(
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    backend: str,
    device: str,
) -> Shares:
    """Return the number of workers (None: as many as fit) and their shares; None: the default.

    Raises:
        InputError: the device is a certain GPU, or a GPU without a share of one.
    """
    if ":" in device:
        raise InputError(f"--device {device}: Ray gives each worker its GPU; write --device cuda")
    needs_gpu = device == "cuda" or (backend in _GPU_BACKENDS and device != "cpu")
    gpus = float(needs_gpu) if gpus is None else gpus
    if needs_gpu and not gpus:
        raise InputError("a worker on a GPU needs a share of one; give --gpus 1, or --gpus 0.5")
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"--gpus {gpus:g} is neither a whole number nor below 1")
    return Shares(workers, cpus or min(_DEFAULT_CPUS, usable_cores()), gpus)


def batch_sinks(names: Sequence[str]) -> tuple[str, ...]:
    """Return the sinks of every video: those that are asked for, and "json".

    A video counts as finished only if its result file is there.

    Raises:
        InputError: a sink is unknown, or writes into one place that all videos would share.
    """
    for choice in parse_choices(names):
        if choice.target == STANDARD_OUTPUT or not choice.kind.outputs:
            raise InputError(
                f"sink '{choice.name}={choice.target}' is one place for all videos; choose sinks "
                "that write into each video's folder, or use 'rvos-deploy run'"
            )
    return (*names,) if "json" in names else (*names, "json")


def plan_segmenter(
    bundle: Path,
    backend: str,
    device: str,
    threads: int,
    settings: StreamSettings,
    precision_hint: PrecisionHint | None = None,
) -> SegmenterOptions:
    """Return what each worker loads, with its part of the machine's memory for waiting masks.

    ``threads``: CPU threads of a graph. The machine is taken to hold as many workers as fit its
    cores.
    """
    workers = max(1, usable_cores() // threads)
    budget = max(settings.mask_budget // workers, _LEAST_MASK_BUDGET)
    return SegmenterOptions(
        str(bundle.absolute()),
        replace(settings, mask_budget=budget),
        backend,
        device,
        threads,
        precision_hint,
    )
