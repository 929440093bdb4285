"""Describe in one picklable object how a worker process loads its segmenter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rvos_deploy.environment import usable_cores
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings

_LEAST_MASK_BUDGET = 64 * 2**20


@dataclass(frozen=True)
class SegmenterOptions:
    """Say how a worker loads its segmenter; see ``load``."""

    bundle: str
    stream: StreamSettings
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    precision_hint: PrecisionHint | None = None

    def load(self) -> Segmenter:
        """Load the segmenter. Raises as ``rvos_deploy.load``."""
        return load(
            self.bundle,
            backend=self.backend,
            device=self.device,
            threads=self.threads,
            settings=self.stream,
            precision_hint=self.precision_hint,
        )


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
