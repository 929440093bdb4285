"""Compare the speed of J and F: the plain published approach against ours, with equal numbers.

The plain approach is what DAVIS users run: 1-pixel boundary maps, each dilated over the whole frame
with a disk as structuring element (scipy.ndimage, which skimage calls as well), frame by frame.
Both run in this process, in turn, on one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from rvos_deploy.benchmarks.timing import summarise
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.evaluation.metrics import DAVIS_BOUND, FrameScores, frame_scores
from rvos_deploy.json_file import write_json

SIZE = (480, 854)
RADII = (12.0, 30.0, 60.0, 110.0, 180.0)
"""Mean radii of the objects in pixels, used in turn: 0.1 to 25 percent of a DAVIS frame."""

Masks = NDArray[np.bool_]
Scorer = Callable[[Masks, Masks], FrameScores]


def benchmark_metrics(frames: int = 60, seed: int = 0) -> dict[str, Any]:
    """Time both approaches on ``frames`` rendered pairs of 854x480 masks.

    Returns:
        A record that is ready for JSON: times per frame in ``milliseconds``; ``ratio`` is how many
        times more frames a second ours scores.

    Raises:
        InputError: ``frames`` is below 1.
        ParityError: a J or F differs.
    """
    if frames < 1:
        raise InputError(f"frames is {frames}; pass at least 1")
    predictions, truths = render_masks(frames, seed)
    wall, cpu = time.perf_counter(), time.process_time()
    plain, packed, seconds = _time_in_turn(predictions, truths)
    cores = (time.process_time() - cpu) / (time.perf_counter() - wall)
    _require_equal(plain, packed)
    return {
        "schema": "rvos-deploy/benchmark/metrics/1",
        "command": f"python -m rvos_deploy.benchmarks.metrics --frames {frames} --seed {seed}",
        "versions": versions("scipy"),
        "machine": machine(),
        "masks": {"frames": frames, "height": SIZE[0], "width": SIZE[1], "seed": seed},
        "equal": True,
        "j": packed.j_mean,
        "f": packed.f_mean,
        "j_and_f": packed.j_and_f,
        "cores_used": round(cores, 2),
        "plain": summarise(seconds[0]),
        "packed": summarise(seconds[1]),
        "ratio": float(seconds[0].sum() / seconds[1].sum()),
    }


def render_masks(frames: int, seed: int) -> tuple[Masks, Masks]:
    """Render pairs of predictions and truths, bool [T,480,854] each.

    A frame has one wavy object, which the image's border sometimes cuts. Its prediction is the same
    object, slightly moved and with another outline.
    """
    rng = np.random.default_rng(seed)
    pairs = [_render_pair(rng, RADII[index % len(RADII)]) for index in range(frames)]
    predictions, truths = zip(*pairs, strict=True)
    return np.stack(predictions), np.stack(truths)


def _render_pair(rng: np.random.Generator, radius: float) -> tuple[Masks, Masks]:
    centre = rng.uniform((0.1 * SIZE[0], 0.1 * SIZE[1]), (0.9 * SIZE[0], 0.9 * SIZE[1]))
    waves = rng.normal(scale=0.05, size=(2, 12))
    truth = _blob(centre, radius, waves)
    moved = centre + rng.normal(scale=0.04 * radius, size=2)
    return _blob(moved, radius, waves + rng.normal(scale=0.01, size=waves.shape)), truth


def _blob(centre: NDArray[np.float64], radius: float, waves: NDArray[np.float64]) -> Masks:
    """Fill the outline whose distance from the centre is radius * (1 + a Fourier series)."""
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    angle = np.arctan2(y - centre[0], x - centre[1])
    outline = np.ones(SIZE)
    for number, (sine, cosine) in enumerate(waves.T, start=1):
        outline += sine * np.sin(number * angle) + cosine * np.cos(number * angle)
    inside: Masks = np.hypot(y - centre[0], x - centre[1]) < radius * outline
    return inside


def plain_scores(predictions: Masks, truths: Masks) -> FrameScores:
    """Compute J and F of bool masks [T,H,W] by the plain published approach, frame by frame."""
    radius = math.ceil(DAVIS_BOUND * float(np.linalg.norm(truths.shape[-2:])))
    span = np.arange(-radius, radius + 1)
    disk = span[:, None] ** 2 + span[None, :] ** 2 <= radius * radius
    pairs = list(zip(predictions, truths, strict=True))
    return FrameScores(
        j=np.array([_plain_j(*pair) for pair in pairs]),
        f=np.array([_plain_f(*pair, disk) for pair in pairs]),
    )


def _plain_j(prediction: Masks, truth: Masks) -> float:
    union = np.sum(prediction | truth)
    return float(np.sum(prediction & truth) / union) if union else 1.0


def _plain_f(prediction: Masks, truth: Masks, disk: Masks) -> float:
    ours, theirs = _plain_boundary(prediction), _plain_boundary(truth)
    n_ours, n_theirs = np.sum(ours), np.sum(theirs)
    if n_ours == 0 or n_theirs == 0:
        return float(n_ours == n_theirs)
    precision = np.sum(ours & ndimage.binary_dilation(theirs, disk)) / n_ours
    recall = np.sum(theirs & ndimage.binary_dilation(ours, disk)) / n_theirs
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _plain_boundary(mask: Masks) -> Masks:
    """Mark pixels that differ from their right, lower or lower-right neighbour; the edge is
    repeated.
    """
    edge = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    marks: Masks = (mask ^ edge[:-1, 1:]) | (mask ^ edge[1:, :-1]) | (mask ^ edge[1:, 1:])
    return marks


def _time_in_turn(
    predictions: Masks, truths: Masks
) -> tuple[FrameScores, FrameScores, NDArray[np.float64]]:
    """Return the scores of both approaches and seconds [2,T]; both score each frame before the
    next.
    """
    scorers: tuple[Scorer, Scorer] = (plain_scores, frame_scores)
    seconds = np.empty((2, len(truths)))
    scores = np.empty((2, 2, len(truths)))
    for scorer in scorers:
        scorer(predictions[:1], truths[:1])  # warm up
    for index in range(len(truths)):
        frame = slice(index, index + 1)
        for which, scorer in enumerate(scorers):
            start = time.perf_counter()
            result = scorer(predictions[frame], truths[frame])
            seconds[which, index] = time.perf_counter() - start
            scores[which, :, index] = result.j[0], result.f[0]
    return FrameScores(*scores[0]), FrameScores(*scores[1]), seconds


def _require_equal(plain: FrameScores, packed: FrameScores) -> None:
    different = np.flatnonzero((plain.j != packed.j) | (plain.f != packed.f))
    if len(different):
        worst = different[0]
        raise ParityError(
            f"{len(different)} of {len(plain.j)} frames differ; frame {worst}: plain J "
            f"{plain.j[worst]!r} F {plain.f[worst]!r}, ours J {packed.j[worst]!r} F "
            f"{packed.f[worst]!r}; run pytest tests/evaluation to find the cause"
        )


def _table(record: dict[str, Any]) -> Table:
    masks = record["masks"]
    title = f"J and F of {masks['frames']} frames of {masks['width']}x{masks['height']}, one core"
    table = Table("approach", "frames/s", "ms p50", "ms p99", "J&F", title=title)
    for name in ("plain", "packed"):
        times = record[name]["milliseconds"]
        speed = f"{record[name]['frames_per_second']:.1f}"
        score = f"{record['j_and_f']:.6f}"
        table.add_row(name, speed, f"{times['p50']:.3f}", f"{times['p99']:.3f}", score)
    table.caption = f"equal numbers on every frame; {record['ratio']:.0f} times the frames/s"
    return table


@with_error_lines
def main(
    frames: Annotated[int, typer.Option(min=1, help="How many pairs of masks to score.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rendered masks.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the record to this file.")
    ] = None,
) -> None:
    """Time J and F against the plain published approach."""
    record = benchmark_metrics(frames, seed)
    Console().print(_table(record))
    if json_file is not None:
        write_json(json_file, record)


if __name__ == "__main__":
    typer.run(main)
