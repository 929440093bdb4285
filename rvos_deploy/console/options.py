"""Options that several commands share, and how they are read."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.input_size import check_size


class BackendName(str, Enum):
    """Back ends by name."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    bf16_reference = "bf16-reference"


class Device(str, Enum):
    """Where a back end runs; ``auto``: on the CPU, but tensorrt on the GPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


PACKAGED = Path("tiny")
"""The bundle that is taken where none is named."""

BundleOption = Annotated[
    Path,
    typer.Option(
        "--bundle",
        "-b",
        metavar="DIR",
        help="Bundle made by 'export', or the name of a packaged one.",
    ),
]
BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Made by 'export', or the name of a packaged one.")
]
BackendOption = Annotated[BackendName, typer.Option("--backend", help="Inference library.")]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where it runs; never another than the one named.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="CPU threads of a graph. Default: all cores."
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Box that frames are fitted into, multiples of 32, for example 256x448. "
        "Default: the model's own.",
    ),
]
EmojiOption = Annotated[
    bool,
    typer.Option(
        "--emoji/--no-emoji",
        help="Draw emoji beside shapes; needs the font NotoColorEmoji.ttf. Default: shapes alone.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")
]


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path] = ()) -> None:
    """Refuse output files that cannot be written or that are inputs: before hours of work.

    Args:
        outputs: as given on the command line; None where nothing was asked for.
        inputs: files, and folders of which any file may be read.

    Raises:
        InputError: says what to name instead.
    """
    from rvos_deploy.files import check_output_file
    from rvos_deploy.overlap import refuse_overlap

    named: list[Path] = []
    for path in outputs:
        if path is None:
            continue
        check_output_file(path)
        if path in named:
            raise InputError(f"{path} is named for two outputs; give each its own file")
        named.append(path)
    refuse_overlap(inputs, named)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of the network's ``HxW``.

    Raises:
        InputError: another form, or no multiples of 32.
    """
    if text is None:
        return None
    height, width = read_sides(text, "256x448")
    check_size(height, width)
    return height, width


def read_sides(text: str, example: str) -> tuple[int, int]:
    """(height, width) of any ``HxW``; InputError names ``example`` for another form."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"size '{text}' is not of the form HxW, for example {example}")
    return int(parts[0]), int(parts[1])
