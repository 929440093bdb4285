"""Define options that several commands share, and parse their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.errors import InputError, one_line
from rvos_deploy.graph_io.input_size import check_size
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.runtime.backends.device_names import check_device, check_gpu
from rvos_deploy.runtime.backends.registry import BACKEND_NAMES, BackendName
from rvos_deploy.stream_settings import Fallback, Mode

PACKAGED = Path("tiny")
"""The bundle of commands without a bundle argument."""

INFERENCE_PANEL, MASKS_PANEL, OUTPUT_PANEL = "Inference", "Masks", "Output"
"""Groups of options in a command's help."""

BundleArgument = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="Bundle from 'export', or name of a packaged bundle."),
]
BundleOption = Annotated[
    Path,
    typer.Option(
        "--bundle", "-b", metavar="DIR", help="Bundle from 'export', or name of a packaged bundle."
    ),
]

# How graphs run.
BackendOption = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        metavar="NAME",
        help=f"Inference library: {', '.join(BACKEND_NAMES)}. auto: what choose-backend recorded, "
        "or else onnxruntime.",
        rich_help_panel=INFERENCE_PANEL,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=check_device,
        help="Device of the graphs: auto (CPU, but the first GPU for tensorrt), cpu, cuda, cuda:N, "
        "or a GPU's UUID.",
        rich_help_panel=INFERENCE_PANEL,
    ),
]
GpuOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=check_gpu,
        help="GPU that builds and runs the engine: cuda (the first one), cuda:N, or its UUID.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads per graph. Default: all cores.",
        rich_help_panel=INFERENCE_PANEL,
    ),
]
PrecisionHintOption = Annotated[
    PrecisionHint | None,
    typer.Option(
        "--precision-hint",
        help="For --backend openvino and fp32 bundles: multiply maps with weights in bfloat16. "
        "Faster; masks change a little. Default: float32.",
        rich_help_panel=INFERENCE_PANEL,
    ),
]

# How a stream runs. console/stream_options.py turns these options into settings.
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="online: decide each mask from the frames so far; offline: from the whole clip. "
        "Default: offline (OnlineRefer: online), but online for a live stream.",
        rich_help_panel=MASKS_PANEL,
    ),
]
LookaheadOption = Annotated[
    int | None,
    typer.Option(
        "--lookahead",
        metavar="N",
        min=0,
        help="Online: frames to wait before deciding a mask. Default: 0.",
        rich_help_panel=MASKS_PANEL,
    ),
]
MemoryOption = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="N",
        min=1,
        help="Frames to remember. Default: 64 online, all offline.",
        rich_help_panel=MASKS_PANEL,
    ),
]
AnchorsOption = Annotated[
    int | None,
    typer.Option(
        "--anchors",
        metavar="N",
        min=0,
        help="Older frames to remember as well, spread evenly. Default: 0.",
        rich_help_panel=MASKS_PANEL,
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="SCORE",
        help="Score that a query must pass, 0 to 1. Default: the bundle's own.",
        rich_help_panel=MASKS_PANEL,
    ),
]
FallbackOption = Annotated[
    Fallback | None,
    typer.Option(
        "--fallback",
        help="Mask if no query passes the threshold. none: an empty mask; top1: the best query's "
        "mask. Default: none.",
        rich_help_panel=MASKS_PANEL,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Box that frames are resized into, height and width in multiples of 32, for example "
        "256x448. Default: the model's own.",
        rich_help_panel=MASKS_PANEL,
    ),
]
ShortSideOption = Annotated[
    int | None,
    typer.Option(
        "--short-side",
        metavar="N",
        min=32,
        help="Length in pixels to scale the short side of frames to, instead of --size. Default: "
        "the model's own.",
        rich_help_panel=MASKS_PANEL,
    ),
]

JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", metavar="N", min=1, help="Worker processes. Default: all cores."),
]
EmojiOption = Annotated[
    bool,
    typer.Option(
        "--emoji/--no-emoji",
        help="Draw emoji beside shapes; needs the font NotoColorEmoji.ttf. Default: only shapes.",
        show_default=False,
    ),
]
OutFolderOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for all output files.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the result to FILE as JSON."),
]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse the network's ``HxW`` as (height, width) in pixels; None stays None.

    Raises:
        InputError: the text has another form, or a side is not a multiple of 32.
    """
    if text is None:
        return None
    height, width = read_sides(text, "256x448")
    check_size(height, width)
    return height, width


def read_sides(text: str, example: str) -> tuple[int, int]:
    """Parse any ``HxW`` as (height, width). Raises InputError, which names ``example``."""
    parts = text.lower().split("x")
    # Python refuses to read thousands of digits, and no side has six.
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 6 for part in parts):
        shown = one_line(text, 40)
        raise InputError(f"size '{shown}' is not of the form HxW, for example {example}")
    return int(parts[0]), int(parts[1])
