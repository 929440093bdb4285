"""Time deformable attention alone on the CPU: the kernel, a floor for it, and what it replaces.

``python -m rvos_deploy.benchmarks.deformable_attention [--json FILE]`` needs the extra ``export``.
Contenders run in turn, round after round, on the same inputs, and their outputs are compared first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rvos_deploy.benchmarks.timing import summarise
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.environment import machine, usable_cores, versions
from rvos_deploy.errors import ParityError
from rvos_deploy.export.ms_deform_attn import DOMAIN, NODE, attach_function
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.modules.ms_deform_attn import eager_ms_deform_attn

SHAPES: dict[str, tuple[list[tuple[int, int]], int]] = {
    "tiny, 256x448": ([(32, 56), (16, 28), (8, 14)], 16),
    "onlinerefer-r50, 384x640": ([(48, 80), (24, 40), (12, 20), (6, 10)], 32),
    "large, 448x800": ([(56, 100), (28, 50), (14, 25)], 32),
}
"""(height, width) of the levels, and the channels of a head: an encoder layer of each network."""
HEADS, POINTS = 8, 4
TOLERANCE = 2e-4
"""Between outputs: every contender but the kernel computes locations in one float32, which is off
by 100 * 2^-23 pixels at a width of 100, times a slope of up to 8 between normal values."""


def make_inputs(name: str) -> kernel.Inputs:
    """Return inputs of a self-attention: every pixel is a query, offsets have a deviation of 2."""
    sides, channels = SHAPES[name]
    random = np.random.default_rng(0)
    shapes = np.array(sides, np.int32)
    queries, samples = int(shapes.prod(1).sum()), len(sides) * POINTS
    grids = [np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1)
             for h, w in sides]  # fmt: skip
    points = (1, queries, HEADS, len(sides), POINTS, 2)
    return kernel.Inputs(
        random.standard_normal((1, queries, HEADS, channels), np.float32),
        shapes,
        np.concatenate([grid.reshape(-1, 2) for grid in grids]).astype(np.float32),
        2 * random.standard_normal(points, np.float32),
        random.standard_normal((1, queries, HEADS, samples), np.float32),
    )


def sampled_pixels(inputs: kernel.Inputs) -> NDArray[np.int32]:
    """Return the pixels of all corners, [B,Q,heads,4*samples]; those outside are moved inside."""
    starts = np.concatenate([[0], inputs.level_shapes.prod(1).cumsum()[:-1]])
    corners = []
    for level, (height, width) in enumerate(inputs.level_shapes):
        size = np.array([width, height])
        places = inputs.reference_points[None, :, None, None] * size - 0.5
        first = np.floor(places + inputs.sampling_offsets[:, :, :, level]).astype(np.int64)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x = np.clip(first[..., 0] + dx, 0, width - 1)
            y = np.clip(first[..., 1] + dy, 0, height - 1)
            corners.append(starts[level] + y * width + x)
    return np.concatenate(corners, -1).astype(np.int32)


def function_body(threads: int) -> onnxruntime.InferenceSession:
    """Open the ONNX function in ONNX Runtime, as the function of one node."""
    kinds = (TensorProto.FLOAT, TensorProto.INT32, *[TensorProto.FLOAT] * 3)
    axes: tuple[list[str | int], ...] = (["B", "S", "heads", "D"], ["levels", 2], ["Q", 2],
            ["B", "Q", "heads", "levels", "points", 2], ["B", "Q", "heads", "K"])  # fmt: skip
    given = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(kernel.Inputs._fields, kinds, axes, strict=True)
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", "Q", "C"])
    node = helper.make_node(
        NODE, list(kernel.Inputs._fields), ["output"], domain=DOMAIN, plugin_namespace="rvos"
    )
    graph = helper.make_graph([node], "one", given, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    attach_function(model)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def contenders(inputs: kernel.Inputs, threads: int) -> dict[str, Callable[[], NDArray[Any]]]:
    """Return what is timed, by name. All but the floor give the same output."""
    best = kernel.INSTRUCTIONS.index(kernel.instructions())
    session, tensors = function_body(threads), [torch.from_numpy(array) for array in inputs]

    def pytorch() -> NDArray[Any]:
        with torch.inference_mode():
            return eager_ms_deform_attn(*tensors).numpy()

    return {
        "floor: read the rows": partial(kernel.sum_rows, inputs, sampled_pixels(inputs), threads),
        **{
            f"kernel, {name}": partial(kernel.ms_deform_attn, inputs, None, threads, name)
            for name in kernel.INSTRUCTIONS[best::-1]
        },
        "function body, ONNX Runtime": lambda: session.run(None, inputs._asdict())[0],
        "grid_sample, PyTorch": pytorch,
    }


def measure(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Time all contenders in turn at one shape.

    Raises:
        ParityError: outputs differ.
    """
    timed = contenders(make_inputs(name), threads)
    outputs = {label: run() for label, run in timed.items() if not label.startswith("floor")}
    wanted = outputs["grid_sample, PyTorch"]
    for label, output in outputs.items():
        if (error := float(np.abs(output - wanted).max())) > TOLERANCE:
            raise ParityError(f"{name}: '{label}' differs from PyTorch by {error:.1e}")
    seconds: dict[str, list[float]] = {label: [] for label in timed}
    for _ in range(rounds):
        for label, run in timed.items():
            started = time.perf_counter()
            run()
            seconds[label].append(time.perf_counter() - started)
    return {label: summarise(times) for label, times in seconds.items()}


@with_error_lines
def main(
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of one call; one per usable core by default.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Calls of each contender.")] = 30,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result.")
    ] = None,
) -> None:
    """Time deformable attention alone: the CPU kernel beside a floor and what it replaces."""
    used = threads or usable_cores()
    torch.set_num_threads(used)
    results: dict[str, Any] = {}
    for name in SHAPES:
        results[name] = measure(name, used, rounds)
        medians = {label: one["milliseconds"]["p50"] for label, one in results[name].items()}
        ours = next(value for label, value in medians.items() if label.startswith("kernel"))
        typer.echo(f"{name}, {used} threads")
        for label, value in medians.items():
            typer.echo(f"  {label:<28} {value:8.2f} ms   {value / ours:5.2f} of the kernel's time")
    if json_file is not None:
        content = {
            "schema": "rvos-deploy/benchmark/deformable-attention/1",
            "versions": versions(),
            "machine": machine(),
            "instructions": kernel.instructions(),
            "threads": used,
            "rounds": rounds,
            "shapes": results,
        }
        write_json(json_file, content)


if __name__ == "__main__":
    typer.run(main)
