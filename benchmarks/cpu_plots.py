"""Draw the plots of the CPU benchmark with matplotlib, as SVG for a page or as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS

Draw = Callable[[Figure], None]

_INK = "#010203"
"""Stands for the page's own text colour, which is light in a dark page."""
_WIDTH = 9.0
_BAR = 0.34
"""Height of a bar in inches."""

COLOURS: Mapping[str, str] = {
    "pytorch": "#8c8c8c",
    "pytorch-bf16": "#bdbdbd",
    "onnxruntime": "#0072b2",
    "openvino": "#d55e00",
    "openvino-bf16": "#e69f00",
    "onnxruntime-int8": "#56b4e9",
    "openvino-int8": "#cc79a7",
}
"""Colours of contenders that colour-blind readers can tell apart (Okabe and Ito)."""

STAGE_COLOURS: Mapping[str, str] = {
    "backbone": "#0072b2",
    "frame_decoder": "#d55e00",
    "video_decoder": "#009e73",
    "mask_head": "#cc79a7",
    "alignment": "#f0e442",
    "resize": "#56b4e9",
    "post-processing": "#e69f00",
    "other": "#9a9a9a",
}
"""Stages drawn by name; the others are small, and drawn together."""

STAGE_TITLES = {"post-processing": "masks to size"}
"""Stages whose name in the results says less than this."""

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "rvos-deploy",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9a9a9a",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def as_svg(draw: Draw, height: float, label: str) -> str:
    """Return a plot as an SVG element that takes the page's colours; ``height`` is in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Each plot numbers its parts alike, and a page must not repeat an id.
    own = re.sub(r"\W+", "-", label.lower())
    svg = re.sub(r'id="', f'id="{own}-', svg)
    svg = re.sub(r"(xlink:href|href)=\"#", rf'\1="#{own}-', svg)
    svg = re.sub(r"url\(#", f"url(#{own}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def as_png(draw: Draw, height: float, file: Path, source: str) -> None:
    """Write a plot as a picture on white, with ``source`` in its metadata; ``height`` in inches."""
    style: Any = {**_STYLE, "figure.facecolor": "white", "savefig.facecolor": "white"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(file, format="png", dpi=130, metadata={"Source": source, "Software": None})


def stage_title(stage: str) -> str:
    """Return the name of a stage for readers."""
    return STAGE_TITLES.get(stage, stage.replace("_", " "))


def stage_medians(contender: Mapping[str, Any]) -> dict[str, float]:
    """Return the median milliseconds of the drawn stages of a frame; the rest is "other"."""
    medians = {
        name: stage["milliseconds"]["p50"]
        for name, stage in contender["stages"].items()
        if name != "text"
    }
    drawn = {name: medians[name] for name in STAGE_COLOURS if name in medians}
    whole = contender["end_to_end"]["milliseconds"]["p50"]
    return {**drawn, "other": max(0.0, whole - sum(drawn.values()))}


def measured(stream: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contenders of a stream that have times, in the order of the tables."""
    found = stream["contenders"]
    return {name: found[name] for name in CONTENDERS if "end_to_end" in found.get(name, {})}


def stage_bars(streams: Mapping[str, Mapping[str, Any]]) -> tuple[Draw, float]:
    """Return a plot of the stages of every contender, one panel a stream, and its height."""
    rows = [max(1, len(measured(stream))) for stream in streams.values()]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(streams), 1, height_ratios=rows, squeeze=False)[:, 0]
        used: dict[str, str] = {}
        for axes, (title, stream) in zip(panels, streams.items(), strict=True):
            used |= _stage_panel(axes, title, measured(stream))
        handles = [
            Patch(color=colour, label=stage_title(name))
            for name, colour in STAGE_COLOURS.items()
            if name in used
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=8, frameon=False,
                      handlelength=0.9, columnspacing=1.0, fontsize=9)  # fmt: skip
        panels[-1].set_xlabel("milliseconds a frame (median)")

    return draw, 0.8 + sum(_BAR * count + 0.55 for count in rows)


def _stage_panel(axes: Axes, title: str, contenders: Mapping[str, Any]) -> dict[str, str]:
    used = {}
    for row, contender in enumerate(contenders.values()):
        left = 0.0
        for stage, value in stage_medians(contender).items():
            used[stage] = STAGE_COLOURS[stage]
            axes.barh(row, value, left=left, color=STAGE_COLOURS[stage], height=0.72)
            left += value
        # Medians of stages need not sum to the median of the frame.
        whole = contender["end_to_end"]["milliseconds"]["p50"]
        shown = f"{whole:,.0f}" if whole >= 100 else f"{whole:.1f}"
        axes.text(max(left, whole), row, f"  {shown} ms", va="center")
    axes.set_yticks(range(len(contenders)), [CONTENDERS[name].title for name in contenders])
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    return used


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], labels: tuple[str, str], *, log: bool
) -> tuple[Draw, float]:
    """Return a plot of one line a contender, and its height.

    Args:
        series: points (x, y) by contender.
        labels: of the axes.
        log: draw both axes in logarithms.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, points in series.items():
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, "o-", color=COLOURS[name], label=CONTENDERS[name].title, ms=4)
        if log:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            ticks = sorted({x for points in series.values() for x, _ in points})
            axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
            axes.minorticks_off()
            _plain_decades(axes)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.grid(axis="y", color="#9a9a9a", alpha=0.3, linewidth=0.6)
        figure.legend(loc="outside right upper", frameon=False)

    return draw, 3.4


def _plain_decades(axes: Axes) -> None:
    """Label the logarithmic y axis with plain numbers at 1, 2 and 5 of every decade."""
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-2, 6) for m in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])


def bars(rows: Mapping[str, Mapping[str, float]], label: str, form: str) -> tuple[Draw, float]:
    """Return a plot of stacked bars, one a row, with the sum beside each, and its height.

    Args:
        rows: parts by the name of the row; rows of one part need no legend.
        label: of the axis.
        form: format of the sum.
    """
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        palette = list(STAGE_COLOURS.values())
        for index, row in enumerate(rows.values()):
            left = 0.0
            for part, value in row.items():
                colour = palette[parts.index(part) % len(palette)]
                axes.barh(index, value, left=left, color=colour, height=0.72)
                left += value
            axes.text(left, index, "  " + form.format(left), va="center")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        if len(parts) > 1:
            handles = [
                Patch(color=palette[i % len(palette)], label=part) for i, part in enumerate(parts)
            ]
            figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False,
                          handlelength=1)  # fmt: skip

    return draw, 1.0 + _BAR * len(rows)


def bar_panels(panels: Mapping[str, Mapping[str, float]], label: str) -> tuple[Draw, float]:
    """Return a plot of bars, one panel a group, and its height.

    Args:
        panels: values by the name of the bar, by the title of the panel.
        label: of the axis, which all panels share.
    """
    rows = [len(values) for values in panels.values()]

    def draw(figure: Figure) -> None:
        found = figure.subplots(len(panels), 1, height_ratios=rows, squeeze=False, sharex=True)
        for axes, (title, values) in zip(found[:, 0], panels.items(), strict=True):
            axes.barh(range(len(values)), list(values.values()), height=0.72, color="#0072b2")
            for row, value in enumerate(values.values()):
                axes.text(value, row, f"  {value:.1f}", va="center")
            axes.set_yticks(range(len(values)), list(values))
            axes.invert_yaxis()
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
            axes.margins(x=0.12)
            axes.tick_params(axis="y", length=0)
        found[-1, 0].set_xlabel(label)

    return draw, 0.5 + sum(_BAR * count + 0.45 for count in rows)


def length_plot(length: Mapping[str, Any]) -> tuple[Draw, float]:
    """Return a plot of speed and memory over a long stream, and its height."""
    curve = length["curve"]
    frames = [point["frames"] for point in curve]

    def draw(figure: Figure) -> None:
        speed, memory = figure.subplots(1, 2)
        speed.plot(frames, [p["milliseconds"] for p in curve], "o-", color="#0072b2", ms=3)
        speed.set_ylabel("milliseconds a frame (median)")
        memory.plot(frames, [p["resident_bytes"] / 2**20 for p in curve], "o-", color="#d55e00",
                    ms=3)  # fmt: skip
        memory.set_ylabel("resident memory [MiB]")
        for axes in (speed, memory):
            axes.set_ylim(bottom=0)
            axes.set_xlabel("frames so far")
            axes.grid(axis="y", color="#9a9a9a", alpha=0.3, linewidth=0.6)

    return draw, 3.0
