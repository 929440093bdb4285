"""State what the CPU back ends must reach, and compare measurements with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rvos_deploy.benchmarks.cpu_findings import (
    EIGHT,
    ONE,
    Finding,
    Results,
    beyond_inference,
    decoder_growth,
    decoder_speedup,
    first_mask,
    operator_speedup,
    stream_speedup,
)


@dataclass(frozen=True)
class Target:
    """Define what must be reached.

    Args:
        what: is measured.
        against: what it is compared with.
        needed: the least value, or the greatest where ``at_most``.
        unit: follows the value: "x", "s" or "%".
        find: returns the value from the results; None: it was not measured.
        at_most: whether less is better.
    """

    what: str
    against: str
    needed: float
    unit: str
    find: Callable[[Results], Finding | None]
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Tell whether a value reaches the target."""
        return value <= self.needed if self.at_most else value >= self.needed

    def shown(self, value: float) -> str:
        """Return a value with its unit."""
        if self.unit == "%":
            return f"{value:.0%}"
        return f"{value:.2f} {self.unit}".strip() if self.unit != "x" else f"{value:.2f}x"


def evaluate(results: Results) -> list[dict[str, Any]]:
    """Return each target with what was found: "met", "missed", or "not measured"."""
    return [_evaluate(target, results) for target in TARGETS]


def _evaluate(target: Target, results: Results) -> dict[str, Any]:
    bound = "at most" if target.at_most else "at least"
    row: dict[str, Any] = {
        "what": target.what,
        "against": target.against,
        "needed": f"{bound} {target.shown(target.needed)}",
        "status": "not measured",
    }
    finding = target.find(results)
    if finding is None:
        return row
    return row | {
        "status": "met" if target.met(finding.value) else "missed",
        "found": target.shown(finding.value),
        "value": finding.value,
        "by": finding.by,
        "profile": list(finding.profile),
    }


BODY, GRID_SAMPLE = "function body, ONNX Runtime", "grid_sample, PyTorch"

TARGETS: tuple[Target, ...] = (
    Target(
        "tiny, its own size, 1 expression", "PyTorch eager", 4, "x", partial(stream_speedup, ONE)
    ),
    Target(
        "tiny, its own size, 8 expressions", "PyTorch eager", 3, "x", partial(stream_speedup, EIGHT)
    ),
    Target(
        "base, 352x640, 1 expression",
        "PyTorch eager",
        2.6,
        "x",
        partial(stream_speedup, "stream: base, 352x640, 1 expressions"),
    ),
    Target(
        "onlinerefer-r50, 384x640, 1 expression",
        "PyTorch eager",
        3,
        "x",
        partial(stream_speedup, "stream: onlinerefer-r50, 384x640, 1 expressions"),
    ),
    Target(
        "large, 448x800, 1 expression, fp32 or bf16",
        "PyTorch eager",
        2.5,
        "x",
        partial(stream_speedup, "stream: large, 448x800, 1 expressions", formats=("fp32", "bf16")),
    ),
    Target(
        "large, 448x800, 1 expression, int8",
        "PyTorch eager",
        3.5,
        "x",
        partial(stream_speedup, "stream: large, 448x800, 1 expressions", formats=("int8",)),
    ),
    Target(
        "deformable attention alone",
        "function body in ONNX Runtime",
        5,
        "x",
        partial(operator_speedup, BODY),
    ),
    Target("deformable attention alone", "PyTorch", 6, "x", partial(operator_speedup, GRID_SAMPLE)),
    Target(
        "frame decoder at 8 expressions",
        "8 times that of one",
        0.75,
        "",
        decoder_growth,
        at_most=True,
    ),
    Target("frame decoder at 8 expressions", "PyTorch eager", 3, "x", decoder_speedup),
    Target(
        "first mask from the start of a process, tiny",
        "a fixed time",
        0.6,
        "s",
        first_mask,
        at_most=True,
    ),
    Target(
        "run of tiny: all but inference",
        "the whole run",
        0.10,
        "%",
        beyond_inference,
        at_most=True,
    ),
)
"""What two cores must reach; all speeds are medians of frames, in turn."""
