"""Render the CPU benchmark's record as one self-contained HTML page, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rvos_deploy.benchmarks import cpu_plots as plots
from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS, REFERENCE
from rvos_deploy.benchmarks.cpu_findings import disturbance, median
from rvos_deploy.benchmarks.cpu_plots import Draw, measured
from rvos_deploy.benchmarks.html_page import page, table

_STYLE = """
:root { --good: #1f7a3d; }
@media (prefers-color-scheme: dark) { :root { --good: #6fcf8f; } }
body { max-width: 64rem; } .good { color: var(--good); }
svg { max-width: 100%; height: auto; display: block; margin: .5rem 0 1rem; font-family: inherit; }
svg text { font-family: system-ui, sans-serif !important; }
td { vertical-align: top; } th.text, td.text { max-width: 30rem; }
code { overflow-wrap: anywhere; } ul { margin: .25rem 0; padding-left: 1.2rem; }
"""

_WORDS = frozenset(("what", "against", "by", "back end", "status"))
"""Columns of text, which are aligned left."""

Results = Mapping[str, Any]


def render(record: Mapping[str, Any]) -> str:
    """Render the page: targets first, then what they rest on."""
    results = {
        name: section["result"]
        for name, section in record["sections"].items()
        if section["status"] == "done"
    }
    machine = record["machine"]
    title = "Speed on a CPU"
    parts = [
        f"<h1>{title}</h1><p class=soft>{escape(machine['processor'])}, {record['threads']} "
        "threads; milliseconds are medians of single frames unless a percentile is named; "
        "contenders ran in turn on the same frames of 854x480.</p>",
        _warnings(record),
        _targets(record),
        _streams(results),
        _sweeps(results),
        _operator(results),
        _jobs(results),
        _processes(results),
        _length(results),
        _origin(record),
    ]
    return page(title, _STYLE, parts)


def main_streams(results: Results) -> dict[str, Any]:
    """Return the streams that targets read, by a title for readers."""
    found = {}
    for name, stream in results.items():
        if name.startswith("stream: ") and stream["main"]:
            height, width = stream["size"]
            count = stream["expressions"]
            words = f"{count} expression" + ("s" if count > 1 else "")
            found[f"{stream['model']}, {height}x{width}, {words}"] = stream
    return found


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table; the cells are HTML already."""
    return table(titles, rows, _WORDS)


def _plot(drawn: tuple[Draw, float], label: str) -> str:
    draw, height = drawn
    return plots.as_svg(draw, height, label)


def _warnings(record: Mapping[str, Any]) -> str:
    quick = "A quick run: few frames, so the figures mean little."
    said = [quick if record["request"]["quick"] else None, disturbance(record)]
    return "".join(f"<p class=bad><strong>{line}</strong></p>" for line in said if line)


def _targets(record: Mapping[str, Any]) -> str:
    colours = {"met": "good", "missed": "bad", "not measured": "soft"}
    rows = [
        (
            escape(row["what"]),
            escape(row["against"]),
            escape(row["needed"]),
            escape(row.get("found", "")),
            f"<span class={colours[row['status']]}>{row['status']}</span>",
            escape(row.get("by", "")),
        )
        for row in record["targets"]
    ]
    missed = [row for row in record["targets"] if row["status"] == "missed"]
    why = "".join(
        f"<p><strong>{escape(row['what'])}</strong>, against {escape(row['against'])}: found "
        f"{escape(row['found'])}, needed {escape(row['needed'])}.</p><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in row["profile"])
        + "</ul>"
        for row in missed
    )
    refused = "".join(f"<p class=bad>{escape(line)}</p>" for line in record["refused"])
    failed = "".join(
        f"<p class=bad>{escape(name)} failed: {escape(section['reason'])}</p>"
        for name, section in record["sections"].items()
        if section["status"] == "failed"
    )
    return (
        "<h2>Targets</h2>"
        + _table(("what", "against", "needed", "found", "status", "by"), rows)
        + refused
        + failed
        + (f"<h2>Why targets were missed</h2>{why}" if why else "")
    )


def _streams(results: Results) -> str:
    streams = main_streams(results)
    if not streams:
        return ""
    tables = []
    for title, stream in streams.items():
        rows = [_stream_row(name, one, stream) for name, one in stream["contenders"].items()]
        left_out = "".join(
            f"<p class=soft>{CONTENDERS[name].title}: {escape(reason)}</p>"
            for name, reason in stream["missing"].items()
        )
        titles = ("back end", "p50", "p90", "p99", "CPU ms", "text", "frames/s", "times PyTorch",
                  "J&F with PyTorch")  # fmt: skip
        tables.append(f"<p><strong>{escape(title)}</strong></p>{_table(titles, rows)}{left_out}")
    return (
        "<h2>Streams, one frame at a time</h2><p>From a decoded frame to masks at its own size. "
        "CPU ms: processor time of a frame, over all threads. Text: encoding one expression, once. "
        "J&amp;F compares all masks with those of eager PyTorch in fp32.</p>"
        + _plot(plots.stage_bars(streams), "Milliseconds a frame by stage")
        + "".join(tables)
    )


def _stream_row(name: str, one: Mapping[str, Any], stream: Mapping[str, Any]) -> Sequence[str]:
    title, parity = CONTENDERS[name].title, f"{one['j_and_f']:.4f}"
    if "refused" in one:
        return (title, *("",) * 7, f"<span class=bad>{parity}</span>")
    times = one["end_to_end"]["milliseconds"]
    reference = stream["contenders"].get(REFERENCE, {})
    ratio = f"{median(reference) / times['p50']:.2f}" if "end_to_end" in reference else ""
    return (
        title,
        *(f"{times[p]:.1f}" for p in ("p50", "p90", "p99")),
        f"{one['cpu_milliseconds']:.1f}",
        f"{one['stages']['text']['milliseconds']['p50']:.1f}",
        f"{1e3 / times['p50']:.1f}",
        ratio,
        parity,
    )


def _sweeps(results: Results) -> str:
    streams = [one for name, one in results.items() if name.startswith("stream: tiny, ")]
    if not streams:
        return ""
    size = next((one["size"] for one in streams if one["main"]), streams[0]["size"])
    window = next((one["memory"] for one in streams if one["main"]), streams[0]["memory"])
    usual = {"size": size, "expressions": 1, "memory": window}
    axes: dict[str, tuple[str, Callable[[Results], float]]] = {
        "expressions": ("expressions at once", lambda s: s["expressions"]),
        "size": ("thousand pixels", lambda s: s["size"][0] * s["size"][1] / 1000),
        "memory": ("frames in memory", lambda s: s["memory"]),
    }
    parts = []
    for key, (label, x) in axes.items():
        others = {name: value for name, value in usual.items() if name != key}
        found = [s for s in streams if all(s[name] == value for name, value in others.items())]
        series: dict[str, list[tuple[float, float]]] = {}
        for stream in found:
            for name, one in measured(stream).items():
                series.setdefault(name, []).append((x(stream), median(one)))
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            drawn = plots.lines(series, (label, "milliseconds a frame"), log=True)
            parts.append(_plot(drawn, f"Milliseconds a frame by {label}"))
    return "<h2>What a frame of tiny costs</h2>" + "".join(parts) if parts else ""


def _operator(results: Results) -> str:
    if "operator" not in results:
        return ""
    panels = {
        shape: {label: one["milliseconds"]["p50"] for label, one in times.items()}
        for shape, times in results["operator"]["shapes"].items()
    }
    return (
        "<h2>Deformable attention alone</h2><p>The floor only reads the rows that are sampled. "
        "ONNX Runtime has no operator of its own here: that needs a C header which no wheel "
        "carries.</p>"
        + _plot(plots.bar_panels(panels, "milliseconds (median)"), "Deformable attention")
    )


def _jobs(results: Results) -> str:
    if "job" not in results:
        return ""
    job = results["job"]
    rows = [
        (
            CONTENDERS[name].title,
            f"{one['frames_per_second']:.1f}",
            f"{one['inference_frames_per_second']:.1f}",
            f"{one['beyond_inference']:.0%}",
            f"{one['cpu_milliseconds']:.1f}",
        )
        for name, one in job["contenders"].items()
    ]
    decode, write = (job[part]["milliseconds"]["p50"] for part in ("decode", "write"))
    return (
        f"<h2>Whole jobs, stages overlapped</h2><p>tiny, one expression, {job['frames']} frames: "
        "decode, segment, write masks, overlay and JSON, the best of three runs. Alone, decoding a "
        f"frame takes {decode:.1f} ms and writing its files {write:.1f} ms.</p>"
        + _table(
            ("back end", "frames/s", "inference alone", "beyond inference", "CPU ms a frame"), rows
        )
    )


def _processes(results: Results) -> str:
    parts = []
    if "first mask" in results:
        rows = {
            "auto" if name == "auto" else CONTENDERS[name].title: one["steps"]
            for name, one in results["first mask"]["contenders"].items()
        }
        drawn = plots.bars(rows, "seconds from the start of a process (median)", "{:.2f} s")
        parts.append("<p>First mask of the packaged network:</p>" + _plot(drawn, "First mask"))
    if "peak memory" in results:
        sizes = {
            CONTENDERS[name].title: {"": one["peak_bytes"] / 2**20}
            for name, one in results["peak memory"]["contenders"].items()
        }
        drawn = plots.bars(sizes, "peak memory of a process [MiB]", "{:.0f}")
        parts.append("<p>Peak memory, tiny, one expression:</p>" + _plot(drawn, "Peak memory"))
    return "<h2>Fresh processes</h2>" + "".join(parts) if parts else ""


def _length(results: Results) -> str:
    if "length" not in results:
        return ""
    length = results["length"]
    return (
        f"<h2>A long stream</h2><p>{length['frames']:,} frames of tiny by "
        f"{CONTENDERS[length['contender']].title}.</p>"
        + _plot(plots.length_plot(length), "A long stream")
    )


def _origin(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    left_out = "".join(
        f"<li>{escape(one['title'])}: {escape(one['missing'])}</li>"
        for one in record["contenders"].values()
        if one["missing"]
    )
    return (
        f"<h2>Origin</h2><p><code>{escape(record['command'])}</code></p>"
        f"<p class=soft>{escape(versions)}; {escape(record['machine']['system'])}</p>"
        + (f"<p>Not run here:</p><ul>{left_out}</ul>" if left_out else "")
    )
