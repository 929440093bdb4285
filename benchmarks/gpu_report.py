"""Render the GPU benchmark's record as one self-contained HTML page, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rvos_deploy.benchmarks import gpu_report_parts as parts
from rvos_deploy.benchmarks import gpu_report_speed as speed
from rvos_deploy.benchmarks.html_page import page
from rvos_deploy.console.output import counted

_STYLE = """
:root { --roof: #2f6fab; --rest: #c9d7e4; }
@media (prefers-color-scheme: dark) { :root { --roof: #6aa9e0; --rest: #33414e; } }
body { max-width: 68rem; } th.text, td.text { max-width: 34rem; }
.bar { display: inline-block; width: 5rem; height: .7rem; background: var(--rest); }
.bar i { display: block; height: 100%; background: var(--roof); }
"""


def render(record: Mapping[str, Any]) -> str:
    """Render the page: first what was measured, then what was not, then counts and rooflines."""
    bundle = record["bundle"]
    height, width = record["input_size"]
    title = f"{bundle['model']} {bundle['precision']} on a GPU"
    weights = ", random weights" if bundle["random_weights"] else ""
    subtitle = (
        f"{bundle['parameters'] / 1e6:.1f} million parameters{weights}; frames in "
        f"{height}x{width}, {counted(record['expressions'], 'expression')} at once; axes: "
        + ", ".join(f"{name}={size}" for name, size in record["axes"].items())
    )
    sections = [
        f"<h1>{escape(title)}</h1><p class=soft>{escape(subtitle)}</p>",
        _steps(record),
        speed.streams(record),
        speed.jobs(record),
        speed.graphs(record),
        speed.kernels(record),
        _clock(record),
        _engines(record),
        _masks(record),
        _costs(record),
        _rooflines(record),
        _origin(record),
    ]
    return page(title, _STYLE, sections)


def _steps(record: Mapping[str, Any]) -> str:
    if not record["steps"]:
        planned = [
            (escape(step["name"]), escape(step["does"]), escape(step["needs"]))
            for step in record["plan"]
        ]
        return (
            "<h2>Plan</h2><p><strong>A dry run: nothing on this page was measured.</strong> On a "
            "machine with a GPU the same command without <code>--dry-run</code> would take these "
            "steps.</p>" + parts.table(("step", "what", "needs"), planned)
        )
    rows: list[Sequence[str]] = []
    for step in record["plan"]:
        taken = record["steps"].get(step["name"], {"status": "not reached"})
        kind = "" if taken["status"] == "done" else " class=bad"
        rows.append(
            (
                escape(step["name"]),
                f"<span{kind}>{escape(taken['status'])}</span>",
                f"{taken.get('seconds', 0):.0f} s",
                escape(taken.get("reason", step["does"])),
            )
        )
    return "<h2>Steps</h2>" + parts.table(("step", "status", "took", "what, or why not"), rows)


def _engines(record: Mapping[str, Any]) -> str:
    rows = []
    for target in ("tensorrt", "tensorrt-rtx"):
        for graph, row in (parts.result(record, f"engines {target}") or {}).items():
            parity = f"{row['parity_checks']} checks passed" if row["parity_passed"] else "NOT RUN"
            masks = "" if row["j_and_f"] is None else f"{row['j_and_f']:.4f}"
            size = f"{row['plan_bytes'] / 2**20:.1f}"
            rows.append((target, escape(graph), f"{row['build_seconds']:.1f}", size, parity, masks))
    if not rows:
        return ""
    titles = ("target", "graph", "build s", "plan MiB", "parity", "J&F against ONNX Runtime")
    return "<h2>Engines</h2>" + parts.table(titles, rows)


def _masks(record: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in parts.opened(record).items():
        parity = figures["parity"]
        failed = f"<span class=bad>{len(parity.get('failed', ()))} failed</span>"
        result = "all passed" if parity.get("passed") else failed
        rows.append(
            (
                escape(name),
                str(parity.get("checks", "")),
                escape(parity["reason"]) if "reason" in parity else result,
                parts.number(parity, "j_and_f", 4),
                parts.number(figures["demo"], "j_and_f", 4),
            )
        )
    if not rows:
        return ""
    titles = ("back end", "checks", "parity", "J&F against PyTorch (CPU)", "J&F against the truth")
    return (
        "<h2>Masks</h2><p>Parity with what PyTorch gave at export; J&amp;F of a clip's masks "
        "against PyTorch's, and of the demo's video against its true masks.</p>"
        + parts.table(titles, rows)
    )


def _clock(record: Mapping[str, Any]) -> str:
    """Say how the clock is locked, and why it was not read."""
    clocks = (parts.result(record, "machine") or {}).get("clocks")
    if clocks is None:
        return ""
    unread = f"The clock was not read: {escape(clocks['reason'])}. " if "reason" in clocks else ""
    return (
        f"<p class=soft>{unread}Lock the SM clock before runs that are compared: "
        f"<code>{escape(clocks['lock'])}</code>.</p>"
    )


def _costs(record: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(name),
            f"{cost['total_macs'] / 1e9:.3f}",
            *(f"{cost[f'{kind}_bytes'] / 2**20:.2f}" for kind in ("weight", "input", "output")),
            escape(", ".join(f"{k} {v / 1e9:.3f}" for k, v in cost["by_operator"].items())),
        )
        for name, cost in record["costs"].items()
    ]
    return (
        "<h2>Counted from the graphs</h2><p>Multiply-adds of convolutions, matrix products and "
        "deformable attention (four pixels a sample), in thousands of millions; bytes in MiB: "
        "weights once, inputs and outputs.</p>"
        + parts.table(("graph", "G", "weights", "inputs", "outputs", "G by operator"), rows)
    )


def _rooflines(record: Mapping[str, Any]) -> str:
    rows: list[Sequence[str]] = []
    for row in record["floors"]:
        if "reason" in row:
            rows.append((escape(row["card"]), escape(row["reason"])))
            continue
        graphs = (f"{one['milliseconds']:.4f} {one['bound'][0]}" for one in row["graphs"].values())
        rows.append(
            (
                escape(row["card"]),
                *graphs,
                f"{row['frame_milliseconds']:.4f}",
                f"{row['frames_per_second']:.0f}",
            )
        )
    sources = "".join(
        f"<li>{escape(row['card'])}: {_rates(row['rates'])}. {escape(row['source'])}.</li>"
        for row in record["floors"]
    )
    return (
        "<h2>Rooflines</h2><p>The least milliseconds: the larger of multiply-adds over the "
        "arithmetic rate (c) and bytes over the memory's rate (m). Kernel launches and copies "
        "between host and GPU are not included. A frame runs all graphs but the text encoder, "
        "which runs once an expression. Weights that stay in the cache from frame to frame are "
        "counted as read again, so a small network can be faster than the share of its bytes.</p>"
        + parts.table(("card", *record["costs"], "frame", "frames/s"), rows)
        + f"<p>Dense rates:</p><ul>{sources}</ul>"
    )


def _rates(rates: Mapping[str, float | None]) -> str:
    kinds = (("fp16", "fp16_flops"), ("TF32", "tf32_flops"), ("fp32", "fp32_flops"))
    known = ((name, rates[key]) for name, key in kinds)
    arithmetic = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in known if rate is not None)
    return f"{(rates['bytes_per_second'] or 0.0) / 1e9:.4g} GB/s; {arithmetic} TFLOPS"


def _origin(record: Mapping[str, Any]) -> str:
    gpu = parts.result(record, "machine")
    found = f"{gpu['name']}, compute capability {gpu['compute_capability']}. " if gpu else ""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"<h2>Made with</h2><p>{escape(found)}{escape(machine['processor'])}, "
        f"{machine['cores']} cores. {escape(versions)}.</p>"
        f"<p><code>{escape(record['command'])}</code></p>"
    )
