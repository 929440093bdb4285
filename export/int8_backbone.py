"""Replace the exported backbone by an int8 one, and check the kernels that run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch

from rvos_deploy.bundle.manifest import QuantizationRecord
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.export.calibration import Calibration
from rvos_deploy.export.half_storage import store_as_half
from rvos_deploy.export.int8 import quantize
from rvos_deploy.export.onnx_graph import save_graph
from rvos_deploy.export.parity import Reference
from rvos_deploy.export.source import Store
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.networks.export_graph import Encoder
from rvos_deploy.networks.network import Network
from rvos_deploy.parity.comparison import sample
from rvos_deploy.parity.verification import Check, check_tensor, run_cases
from rvos_deploy.progress import StepProgress
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.onnxruntime.unoptimized import UnoptimizedBackend

GRAPH = "backbone"
"""The graph that ``--precision int8`` quantizes. It runs once a frame, whatever is asked about it,
and its errors reach all queries alike."""

TOLERANCE = 2e-2
"""Tolerance of int8 graphs, between libraries and kernels, not between int8 and float32.

Two libraries round one number in thousands to another of the 255 steps, and later layers see
other numbers. The trained ``tiny`` differs by 4e-3 of the largest number between ONNX Runtime's
integer kernels, OpenVINO's, and the same graph in float32. A kernel that saturates, a wrong scale
or a wrong layer errs by far more."""


@dataclass(frozen=True)
class Int8Backbone:
    """Hold the contract of an int8 graph, its files, and the record of how it was made."""

    spec: GraphSpec
    files: tuple[Path, ...]
    record: QuantizationRecord


def quantize_backbone(
    spec: GraphSpec,
    files: list[Path],
    calibration: Calibration,
    store: Store,
    progress: StepProgress,
) -> Int8Backbone:
    """Replace the files of a float32 graph.

    Args:
        spec: contract of the float32 graph.
        files: its files, the graph first.
        calibration: frames that calibrate, and frames that measure the error.
        store: "fp16" stores the weights of float32 layers as float16 where that is exact.
        progress: called with each step.

    Raises the errors of ``int8.quantize``.
    """
    quantized = quantize(spec.name, onnx.load(files[0]), calibration, progress)
    for file in files:
        file.unlink()
    if store == "fp16":
        store_as_half(quantized.model)
    written = save_graph(quantized.model, files[0])
    made = replace(spec, precision="int8", tolerance=TOLERANCE)
    return Int8Backbone(made, tuple(written), quantized.record)


def check_int8(
    backbone: Int8Backbone, network: Network, backend: OnnxRuntimeBackend, reference: Reference
) -> list[Check]:
    """Compare a back end's int8 kernels with the graph's definition, at every size.

    The definition computes in float32 between the graph's own rounding steps. Samples of it go to
    ``reference``.
    """
    spec, checks = backbone.spec, []
    files = [(spec, OnnxFile(backbone.files[0]))]
    with (
        UnoptimizedBackend().open_files(files) as defined,
        backend.open_files(files) as measured,
    ):
        runs = (run_cases(session.graphs[spec.name], network) for session in (defined, measured))
        for (case, _, expected), (_, _, found) in zip(*runs, strict=True):
            for tensor in spec.outputs:
                name = f"{case} {tensor.name}"
                (one,) = defined.ops.to_host([expected[tensor.name]]).arrays()
                (other,) = measured.ops.to_host([found[tensor.name]]).arrays()
                checks.append(check_tensor(name, spec.tolerance, one, other))
                reference[name] = sample(one).copy()
    return checks


@contextmanager
def int8_encoder(backbone: Int8Backbone) -> Iterator[Encoder]:
    """Open what encodes frames in place of PyTorch's backbone: the int8 graph's definition."""
    spec = backbone.spec
    with UnoptimizedBackend().open_files([(spec, OnnxFile(backbone.files[0]))]) as session:

        def encode(frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = session.graphs[spec.name].run({spec.inputs[0].name: frame.numpy()})
            arrays = session.ops.to_host([outputs[tensor.name] for tensor in spec.outputs])
            return tuple(torch.from_numpy(array) for array in arrays.arrays())

        yield encode
