"""Plan the GPU benchmark, and compute the rooflines beside its figures; needs no GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from rvos_deploy.benchmarks.gpu_specs import GPU_SPECS, GpuSpec, Rates
from rvos_deploy.benchmarks.roofline import GraphCost, count_model, roofline
from rvos_deploy.benchmarks.timing import EXPRESSIONS
from rvos_deploy.bundle.folder import TOKENIZER, Bundle
from rvos_deploy.engines.layer_types import HALF
from rvos_deploy.engines.profiles import bundle_axes, default_profile
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import fixed_box
from rvos_deploy.stream_settings import DEFAULT_MEMORY, StreamSettings

SCHEMA = "rvos-deploy/benchmark/gpu/2"
EVERY_FRAME = ("backbone", "frame_decoder", "video_decoder", "mask_head")
"""Graphs that a stream runs once a frame. The text encoder runs once an expression."""

INSTALL = "pip install -e '.[gpu-benchmark]'"
"""Installs what every step needs, in a fresh environment and a clone."""

CLIP_SIZE = (480, 854)
"""(height, width) of the rendered video."""

ROUNDS = 5
"""Rounds in which all contenders run in turn."""

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu12")


@dataclass(frozen=True)
class Request:
    """Choose the measurements.

    Args:
        bundle: an opened bundle.
        out: the folder of the results; None writes nothing (dry runs only).
        expressions: how many are followed at once.
        frames: measured in every stream, after the warm-up.
        checkpoint: what the bundle was exported from; None where its weights are random.
        rounds: in which all contenders run in turn, at least three.
        video: file of the whole jobs; None: a rendered clip.
        operator: ``models/ops`` of a clone of Deformable-DETR, whose operator is built; None: as it
            is installed.
    """

    bundle: Bundle
    out: Path | None
    expressions: int
    frames: int
    checkpoint: Path | None
    rounds: int = ROUNDS
    video: Path | None = None
    operator: Path | None = None


@dataclass(frozen=True)
class PlannedStep:
    """A step: its name, what it does, and what it needs beside a GPU."""

    name: str
    does: str
    needs: str


PLAN = (
    PlannedStep(
        "machine",
        "name the GPU, its driver, clocks, limits and other users",
        "nvidia-smi, nvidia-ml-py",
    ),
    PlannedStep(
        "rates", "measure what the card can do: a device copy, large matrix products", "torch"
    ),
    PlannedStep("tests", "run the tests that need a GPU", "pytest, a clone"),
    PlannedStep(
        "engines tensorrt",
        "build every graph, compare every output and the masks with ONNX Runtime's",
        "tensorrt",
    ),
    PlannedStep("engines tensorrt-rtx", "the same with TensorRT-RTX", "tensorrt-rtx"),
    PlannedStep(
        "kernels", "time deformable attention by ours and others, in turn", "torch, cuda-bindings"
    ),
    PlannedStep("tensorrt", "load the back end; parity, J&F, memory", "tensorrt, torch"),
    PlannedStep("tensorrt-rtx", "the same with TensorRT-RTX", "tensorrt-rtx, torch"),
    PlannedStep("onnxruntime cuda", "the same with ONNX Runtime CUDA", "onnxruntime-gpu, torch"),
    PlannedStep("pytorch eager", "the same with the PyTorch network, eager", "torch, open_clip"),
    PlannedStep("torch.compile", "the same, compiled with CUDA graphs", "torch, open_clip"),
    PlannedStep("streams", "time the whole stream of all back ends, in turn", "a back end"),
    PlannedStep("graphs", "time every graph alone, in turn", "a back end"),
    PlannedStep(
        "video", "time whole jobs in turn: decode, upload, masks down, encode", "a back end"
    ),
)


def texts_of(request: Request) -> list[str]:
    """Return the expressions that streams follow."""
    return [EXPRESSIONS[i % len(EXPRESSIONS)] for i in range(request.expressions)]


def axes_of(request: Request) -> dict[str, int]:
    """Return the size of every axis in the measured streams, once the memory of past frames is
    full.
    """
    bundle = request.bundle
    fixed = fixed_box(bundle.graphs)
    height, width = bundle.network.geometry(CLIP_SIZE, StreamSettings(), fixed).padded
    content = bundle.read(TOKENIZER)
    tokenizer = bundle.network.tokenizer(bundle.path / TOKENIZER, content, bundle.graphs)
    longest = max(len(tokenizer(text)) for text in texts_of(request))
    axes = bundle_axes(bundle)
    best = {name: sizes[1] for name, sizes in default_profile(bundle).items()}
    known = {"H": height, "W": width, "E": request.expressions, "L": longest, "M": DEFAULT_MEMORY}
    return {name: axes[name].nearest(known.get(name, size)) for name, size in best.items()}


def count_graphs(bundle: Bundle, axes: Mapping[str, int]) -> dict[str, GraphCost]:
    """Count the cost of every graph; the text encoder's is that of one expression, as streams run
    it.
    """
    return {
        name: count_model(
            onnx.load_model_from_string(bundle.graph_file(name).read_model()),
            {**axes, "E": 1} if name == "text_encoder" else axes,
        )
        for name in bundle.graphs
    }


def roofline_on(
    name: str, source: str, rates: Rates, costs: Mapping[str, GraphCost], precision: str
) -> dict[str, Any]:
    """Return the rooflines of every graph and of a frame, ready for JSON, or the reason of having
    none.

    Args:
        name: of the GPU.
        source: of the rates.
        rates: of the GPU.
        costs: by graph.
        precision: of the bundle.
    """
    record: dict[str, Any] = {"card": name, "source": source, "rates": asdict(rates)}
    tf32 = precision in HALF
    try:
        rooflines = {graph: roofline(cost, rates, tf32=tf32) for graph, cost in costs.items()}
    except InputError as error:
        return {**record, "reason": str(error)}
    frame = sum(rooflines[graph].seconds for graph in EVERY_FRAME)
    return {
        **record,
        "graphs": {
            graph: {
                "milliseconds": one.seconds * 1e3,
                "compute_milliseconds": one.compute_seconds * 1e3,
                "memory_milliseconds": one.memory_seconds * 1e3,
                "bound": one.bound,
            }
            for graph, one in rooflines.items()
        },
        "frame_milliseconds": frame * 1e3,
        "frames_per_second": 1 / frame,
    }


def choose_gpu_specs(names: Iterable[str]) -> tuple[GpuSpec, ...]:
    """Return the specs of the named GPUs; all of them where no name is given.

    Raises:
        InputError: a name is unknown; lists the known ones.
    """
    known = {spec.name.lower(): spec for spec in GPU_SPECS}
    for name in names:
        if name.lower() not in known:
            raise InputError(
                f"no rates are known of card '{name}'; known: "
                + ", ".join(spec.name for spec in GPU_SPECS)
            )
    return tuple(known[name.lower()] for name in names) or GPU_SPECS


def new_record(request: Request, specs: Iterable[GpuSpec], command: str) -> dict[str, Any]:
    """Return the part of the record that needs no GPU: plan, costs and published rooflines."""
    bundle, axes = request.bundle, axes_of(request)
    costs = count_graphs(bundle, axes)
    weights = bundle.manifest.weights
    return {
        "schema": SCHEMA,
        "command": command,
        "versions": versions(*PACKAGES),
        "machine": machine(),
        "bundle": {
            "path": str(bundle.path),
            "model": bundle.config.name,
            "precision": bundle.precision,
            "parameters": bundle.manifest.parameters,
            "random_weights": weights.random,
            "stored": weights.stored,
        },
        "input_size": [axes["H"], axes["W"]],
        "expressions": request.expressions,
        "axes": axes,
        "costs": {
            name: {**asdict(cost), "total_macs": cost.total_macs, "total_bytes": cost.total_bytes}
            for name, cost in costs.items()
        },
        "floors": [
            roofline_on(spec.name, spec.source, spec.rates, costs, bundle.precision)
            for spec in specs
        ],
        "plan": [asdict(step) for step in PLAN],
        "steps": {},
    }
