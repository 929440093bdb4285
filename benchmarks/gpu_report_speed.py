"""Render what the GPU benchmark timed in turn: streams, whole jobs, graphs, kernels."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rvos_deploy.benchmarks import gpu_report_parts as parts
from rvos_deploy.console.output import counted


def streams(record: Mapping[str, Any]) -> str:
    """Render the whole stream of every back end, beside the roofline."""
    measured = parts.contenders(record, "streams")
    if not measured:
        return _only_missing("The whole stream", record, "streams")
    own = parts.measured_roofline(record)
    least = own["frame_milliseconds"] if own else None
    ratios = record.get("comparison", {}).get("contenders", {})
    opened = parts.opened(record)
    rows = []
    for name, figures in measured.items():
        times = figures["milliseconds"]
        memory = opened.get(name, {}).get("memory", {}).get("gpu_bytes")
        rows.append(
            (
                escape(name),
                *(f"{times[p]:.2f}" for p in ("p50", "p90", "p99")),
                parts.spread(figures["rounds"]),
                f"{figures['frames_per_second']:.1f}",
                "" if memory is None else f"{memory / 2**20:.0f}",
                _bar(least, times["p50"]),
                _ratio(ratios.get(name)),
                parts.clocks(figures["clocks"]),
            )
        )
    roof = "not known" if least is None else f"{least:.3f} ms"
    titles = (
        *("back end", "p50", "p90", "p99", "spread", "frames/s", "GPU MiB", "roofline / p50"),
        *("times eager's speed", "clock during the rounds"),
    )
    return (
        "<h2>The whole stream</h2><p>From a frame on the host to its masks on the host, "
        f"milliseconds; the memory of past frames is full. Roofline of the graphs: {roof}. "
        f"The bar shows the roofline's share of the p50. {_turns(record, 'streams')}</p>"
        + parts.table(titles, rows)
        + _missing(record, "streams")
    )


def jobs(record: Mapping[str, Any]) -> str:
    """Render whole jobs on a video file, and the time of each stage."""
    measured = parts.contenders(record, "video")
    if not measured:
        return _only_missing("A video, end to end", record, "video")
    rates = [
        (
            escape(name),
            f"{figures['frames_per_second']['p50']:.1f}",
            parts.spread(figures["frames_per_second"]),
            parts.clocks(figures["clocks"]),
        )
        for name, figures in measured.items()
    ]
    stages = dict.fromkeys(stage for figures in measured.values() for stage in figures["stages"])
    times = [
        (escape(stage), *(_stage(figures["stages"].get(stage)) for figures in measured.values()))
        for stage in stages
    ]
    video = parts.result(record, "video")["video"]
    frames = counted(next(iter(measured.values()))["frames"], "frame")
    return (
        f"<h2>A video, end to end</h2><p>{escape(video)}, {frames}: decode, upload, infer, masks "
        f"down, encode, all at the same time. {_turns(record, 'video')}</p>"
        + parts.table(("back end", "frames/s", "spread", "clock during the rounds"), rates)
        + "<p>Each stage's own milliseconds a call, and their spread. The slowest thread decides: "
        "decoding, inference, or masks down and encoding.</p>"
        + parts.table(("stage", *measured), times)
        + _missing(record, "video")
    )


def graphs(record: Mapping[str, Any]) -> str:
    """Render every graph alone, beside its roofline."""
    measured = parts.contenders(record, "graphs")
    if not measured:
        return _only_missing("Each graph alone", record, "graphs")
    own = parts.measured_roofline(record)
    rows = []
    for graph in record["costs"]:
        roof = own["graphs"][graph]["milliseconds"] if own else None
        cells = []
        for figures in measured.values():
            p50 = figures[graph]["milliseconds"]["p50"]
            times = f", {p50 / roof:.1f}x" if roof else ""
            cells.append(f"{p50:.3f} ({parts.spread(figures[graph]['rounds'])}{times})")
        rows.append((escape(graph), "" if roof is None else f"{roof:.4f}", *cells))
    return (
        "<h2>Each graph alone</h2><p>Milliseconds, p50, from the call until the GPU is done; text, "
        "memory and frames come from the host, as in a stream. In brackets: the spread, and how "
        f"many times the roofline. {_turns(record, 'graphs')}</p>"
        + parts.table(("graph", "roofline", *measured), rows)
        + _missing(record, "graphs")
    )


def kernels(record: Mapping[str, Any]) -> str:
    """Render deformable attention alone."""
    kinds = parts.result(record, "kernels")
    if not kinds:
        return ""
    rows = [
        (
            escape(kind),
            escape(timing["name"]),
            f"{timing['milliseconds']['p50']:.4f}",
            parts.spread(timing["milliseconds"]),
            f"{timing['flushed_milliseconds']['p50']:.4f}",
            parts.spread(timing["flushed_milliseconds"]),
            f"{timing['gigabytes_per_second']:.0f}",
            "" if row["floor_milliseconds"] is None else f"{row['floor_milliseconds']:.4f}",
            "" if timing["difference"] is None else f"{timing['difference']:.1e}",
        )
        for kind, row in kinds.items()
        for timing in row["timings"]
    ]
    titles = (
        *("values", "kernel", "ms, L2 warm", "spread", "ms, L2 flushed", "spread", "GB/s, warm"),
        *("roofline ms", "largest difference"),
    )
    rest = "".join(
        f"<p>{escape(kind)}, clock: {parts.clocks([row['clocks']])}.</p>"
        + parts.missing(row["missing"])
        for kind, row in kinds.items()
    )
    rounds = next(iter(kinds.values()))["rounds"]
    return (
        "<h2>Deformable attention alone</h2><p>Batches of 100 launches in one CUDA graph (or, for "
        "what has graphs of its own, behind a spin kernel), on a stream of their own, in turn, in "
        f"{rounds} rounds. Flushed: a write over the whole L2 cache before each launch, whose own "
        "time is taken off. Differences are from PyTorch's eager form in the same type.</p>"
        + parts.table(titles, rows)
        + rest
    )


def _missing(record: Mapping[str, Any], step: str) -> str:
    return parts.missing((parts.result(record, step) or {}).get("missing", {}))


def _only_missing(title: str, record: Mapping[str, Any], step: str) -> str:
    """Render a section of which nothing could run; nothing where the step was not reached."""
    rows = _missing(record, step)
    return f"<h2>{title}</h2>{rows}" if rows else ""


def _turns(record: Mapping[str, Any], step: str) -> str:
    rounds = parts.result(record, step)["rounds"]
    return (
        f"All ran in turn, in {rounds} rounds; the spread is the range of the rounds' medians over "
        "their median."
    )


def _stage(figure: Mapping[str, Any] | None) -> str:
    return "" if figure is None else f"{figure['p50']:.2f} ({parts.spread(figure)})"


def _bar(roof: float | None, measured: float) -> str:
    if roof is None:
        return "no roofline"
    share = min(1.0, roof / measured)
    return f"<span class=bar><i style='width:{share:.0%}'></i></span> {roof / measured:.1%}"


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["ratio"] is None:
        return f"<span class=bad>masks differ, J&amp;F {row['j_and_f']:.3f}</span>"
    return f"{row['ratio']:.2f}x"
