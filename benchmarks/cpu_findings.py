"""Find in the CPU benchmark's results the values that targets are about, and what explains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS, REFERENCE
from rvos_deploy.benchmarks.cpu_streams import MINIMUM_J_AND_F
from rvos_deploy.benchmarks.other_work import DISTURBING

Results = Mapping[str, Any]
"""Results of the sections that were measured, by name, and ``accuracy``."""

LOSSES = {"bf16": 0.002, "int8": 0.005}
"""J&F that a number format may lose against fp32."""
EXPRESSIONS = 500
"""Expressions on which a loss must have been measured."""

SLOWEST_STAGES = 5
"""Stages that explain a miss."""
HOST_STAGES = ("resize", "alignment", "memory", "post-processing")
"""Stages of the host, which all contenders share. What makes them faster helps PyTorch as much."""


@dataclass(frozen=True)
class Finding:
    """Hold a measured value, whose it is, and the figures that explain it."""

    value: float
    by: str
    profile: tuple[str, ...]


def disturbance(record: Mapping[str, Any]) -> str | None:
    """Return a sentence on other work beside the measurements; None if there was hardly any."""
    worst = max((s.get("other_cores") or 0 for s in record["sections"].values()), default=0)
    if worst < DISTURBING:
        return None
    return (
        f"Other processes kept up to {worst:.1f} cores busy meanwhile, so all times are too long, "
        "and their ratios mean little. Measure again on a machine that does nothing else."
    )


def counts(name: str, contender: Mapping[str, Any], results: Results) -> bool:
    """Tell whether a contender's speed counts: it was not refused, and its loss is within bounds.

    Masks that agree with fp32 well enough prove a small loss. Otherwise it must have been measured
    on enough expressions (``--accuracy``).
    """
    if "end_to_end" not in contender:
        return False
    arithmetic = CONTENDERS[name].arithmetic
    if arithmetic == "fp32":
        return contender["j_and_f"] >= MINIMUM_J_AND_F
    limit = LOSSES[arithmetic]
    if contender["j_and_f"] >= 1 - limit:
        return True
    measured = results.get("accuracy", {}).get(name)
    return measured is not None and (
        measured["expressions"] >= EXPRESSIONS and measured["lost"] <= limit
    )


def median(contender: Mapping[str, Any], stage: str | None = None) -> float:
    """Return the median milliseconds of a frame, or of one of its stages."""
    summary = contender["end_to_end"] if stage is None else contender["stages"][stage]
    return float(summary["milliseconds"]["p50"])


def _rivals(
    stream: Mapping[str, Any], results: Results, formats: tuple[str, ...]
) -> dict[str, Any]:
    """Return the contenders against PyTorch whose speed counts."""
    return {
        name: contender
        for name, contender in stream["contenders"].items()
        if CONTENDERS[name].package != "torch"
        and CONTENDERS[name].arithmetic in formats
        and counts(name, contender, results)
    }


def _fastest(
    results: Results, section: str, formats: tuple[str, ...] = ("fp32", "bf16", "int8")
) -> tuple[str, Any, Any] | None:
    """Return name and record of the fastest contender of a stream, and PyTorch's record."""
    stream = results.get(section)
    if stream is None:
        return None
    reference = stream["contenders"].get(REFERENCE)
    rivals = _rivals(stream, results, formats)
    if reference is None or not rivals:
        return None
    name = min(rivals, key=lambda one: median(rivals[one]))
    return name, rivals[name], reference


def stream_speedup(
    section: str, results: Results, formats: tuple[str, ...] = ("fp32", "bf16", "int8")
) -> Finding | None:
    """Return the speed-up of the fastest contender of a stream over PyTorch."""
    found = _fastest(results, section, formats)
    if found is None:
        return None
    name, ours, reference = found
    value = median(reference) / median(ours)
    return Finding(value, CONTENDERS[name].title, _stage_lines(ours, reference))


def _stage_lines(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare the slowest stages with PyTorch's."""
    names = [stage for stage in ours["stages"] if stage != "text"]
    names.sort(key=lambda stage: -median(ours, stage))
    lines = []
    graphs = [stage for stage in names if stage not in HOST_STAGES]
    mine, theirs = (sum(median(side, stage) for stage in graphs) for side in (ours, reference))
    lines.append(
        f"all graphs: {mine:.1f} ms, PyTorch {theirs:.1f} ms: {theirs / mine:.2f}x; the other "
        "stages are the same code for both"
    )
    for stage in names[:SLOWEST_STAGES]:
        mine, theirs = median(ours, stage), median(reference, stage)
        share = mine / median(ours)
        lines.append(
            f"{stage.replace('_', ' ')}: {mine:.1f} ms ({share:.0%} of the frame), PyTorch "
            f"{theirs:.1f} ms: {theirs / mine:.2f}x"
        )
    return tuple(lines)


def operator_speedup(rival: str, results: Results) -> Finding | None:
    """Return the least speed-up of the kernel over ``rival`` at any shape."""
    measured = results.get("operator")
    if measured is None:
        return None
    rows = {name: _operator_times(times, rival) for name, times in measured["shapes"].items()}
    worst = min(rows, key=lambda name: rows[name][1] / rows[name][0])
    lines = [
        f"{name}: kernel {kernel:.2f} ms, {rival} {other:.2f} ms ({other / kernel:.1f}x); reading "
        f"the sampled rows takes {floor:.2f} ms"
        for name, (kernel, other, floor) in rows.items()
    ]
    return Finding(rows[worst][1] / rows[worst][0], f"the kernel, {worst}", tuple(lines))


def _operator_times(times: Mapping[str, Any], rival: str) -> tuple[float, float, float]:
    medians = {label: one["milliseconds"]["p50"] for label, one in times.items()}
    kernel = next(value for label, value in medians.items() if label.startswith("kernel"))
    floor = next(value for label, value in medians.items() if label.startswith("floor"))
    return kernel, medians[rival], floor


DECODER = "frame_decoder"
ONE, EIGHT = "stream: tiny, own size, 1 expressions", "stream: tiny, own size, 8 expressions"


def decoder_growth(results: Results) -> Finding | None:
    """Return what eight expressions cost the frame decoder, over eight times one expression."""
    one, eight = results.get(ONE), _fastest(results, EIGHT)
    if one is None or eight is None or eight[0] not in one["contenders"]:
        return None
    name, ours, _ = eight
    single, many = median(one["contenders"][name], DECODER), median(ours, DECODER)
    lines = (f"frame decoder: {single:.1f} ms at 1 expression, {many:.1f} ms at 8",)
    return Finding(many / (8 * single), CONTENDERS[name].title, lines)


def decoder_speedup(results: Results) -> Finding | None:
    """Return the speed-up of the frame decoder over PyTorch's at eight expressions."""
    eight = _fastest(results, EIGHT)
    if eight is None:
        return None
    name, ours, reference = eight
    mine, theirs = median(ours, DECODER), median(reference, DECODER)
    lines = (f"frame decoder at 8 expressions: {mine:.1f} ms, PyTorch {theirs:.1f} ms",)
    return Finding(theirs / mine, CONTENDERS[name].title, lines)


def first_mask(results: Results) -> Finding | None:
    """Return the seconds from the start of a process to its first mask."""
    found = results.get("first mask")
    if found is None:
        return None
    one = found["contenders"]["auto"]
    steps = tuple(f"{step}: {seconds:.2f} s" for step, seconds in one["steps"].items())
    return Finding(one["seconds"], "--backend auto", steps)


def beyond_inference(results: Results) -> Finding | None:
    """Return the share of a run that is not inference."""
    job = results.get("job")
    if job is None:
        return None
    fp32 = {n: c for n, c in job["contenders"].items() if CONTENDERS[n].arithmetic == "fp32"}
    if not fp32:
        return None
    name = max(fp32, key=lambda one: fp32[one]["frames_per_second"])
    decode, write = (job[part]["milliseconds"]["p50"] for part in ("decode", "write"))
    found = fp32[name]
    lines = [
        f"a frame takes {1e3 / found['frames_per_second']:.1f} ms in a run, "
        f"{1e3 / found['inference_frames_per_second']:.1f} ms without decoding, resizing and "
        "writing",
        f"alone, decoding takes {decode:.1f} ms and writing {write:.1f} ms",
    ]
    one = results.get(ONE, {}).get("contenders", {}).get(name, {})
    if "resize" in one.get("stages", {}):
        resize, cpu = median(one, "resize"), found["cpu_milliseconds"]
        added = decode + resize + write
        lines.append(
            f"with {resize:.1f} ms of resizing that is {added:.1f} ms of one core. A frame of the "
            f"run uses {cpu:.1f} ms of all cores, which inference keeps busy, so at least "
            f"{added / cpu:.0%} of the run is not inference"
        )
    return Finding(found["beyond_inference"], CONTENDERS[name].title, tuple(lines))
