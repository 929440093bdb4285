"""Measure whether memory is flat: the resident size after thousands of frames against that after
200.

``python -m rvos_deploy.benchmarks.memory BUNDLE [--frames 3000]``
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.environment import machine, resident_memory_bytes, versions
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.probe import PROBE_BOX, PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.json_file import write_json
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.stream_settings import StreamSettings

SETTLED = 200
"""Frames after which the ring of 64 frames is full and allocators have grown."""


def benchmark_memory(segmenter: Segmenter, frames: int = 3000) -> dict[str, Any]:
    """Push a repeating clip through an online stream; record resident bytes every 200 frames."""
    resident = resident_over_frames(segmenter, frames)
    return {
        "schema": "rvos-deploy/benchmark/memory/1",
        "command": f"python -m rvos_deploy.benchmarks.memory BUNDLE --frames {frames}",
        "versions": {**versions(), "backend": segmenter.backend.describe()},
        "machine": machine(),
        "resident_bytes": {str(number): size for number, size in resident.items()},
        "growth": resident[frames] / resident[SETTLED] - 1,
    }


def resident_over_frames(
    segmenter: Segmenter, frames: int, on_frame: Callable[[int], None] | None = None
) -> dict[int, int]:
    """Return the resident bytes by the number of frames pushed, every 200 frames and at the end.

    Args:
        segmenter: the bundle on a back end.
        frames: how many to push.
        on_frame: is called with the number of frames pushed so far.

    Raises:
        InputError: ``frames`` is not above 200.
    """
    if frames <= SETTLED:
        raise InputError(f"frames must exceed {SETTLED}, found {frames}")
    clip = probe_clip()
    resident: dict[int, int] = {}
    settings = StreamSettings(size=PROBE_BOX, lookahead=2, anchors=8)
    with segmenter.stream(PROBE_EXPRESSIONS, settings) as stream:
        for number in range(1, frames + 1):
            stream.push(clip[number % len(clip)])
            if number % SETTLED == 0 or number == frames:
                resident[number] = resident_memory_bytes()
            if on_frame is not None:
                on_frame(number)
    return resident


@with_error_lines
def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by 'export'.")],
    frames: Annotated[int, typer.Option(help="How many frames to push.")] = 3000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.")] = None,
) -> None:
    """Measure the resident memory of a long online stream."""
    with load(bundle) as segmenter:
        record = benchmark_memory(segmenter, frames)
    for number, size in record["resident_bytes"].items():
        typer.echo(f"{int(number):>8} frames {size / 2**20:8.1f} MiB")
    typer.echo(f"growth after {SETTLED} frames: {record['growth']:+.2%}")
    if json_file is not None:
        write_json(json_file, record)


if __name__ == "__main__":
    typer.run(main)
