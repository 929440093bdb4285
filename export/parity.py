"""Compare PyTorch with the exported files: every graph at several sizes.

Graphs in half precision are compared twice. The first comparison runs the graphs unchanged, and
allows for rounding after different operators and for queries that the last bit decides
(``MAXIMUM_UNDECIDED_QUERIES`` of ``verification``), which is too much to prove an operator. The
second comparison computes both sides in float32 without rounding. Only the rounding of constants
differs then, and cannot hide a wrong operator, weight or order of axes.

An int8 graph is made of the float32 graph, which is compared as usual. Then the int8 kernels are
compared with the int8 graph's own definition; what int8 loses is measured in ``int8.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.tensors import HostArray
from rvos_deploy.networks.export_graph import Graph
from rvos_deploy.networks.network import Network
from rvos_deploy.parity.comparison import sample
from rvos_deploy.parity.verification import (
    Check,
    check_tensor,
    run_cases,
)
from rvos_deploy.runtime.backends.base import Session
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend
from rvos_deploy.runtime.backends.onnxruntime.unoptimized import UnoptimizedBackend

Reference = dict[str, NDArray[Any]]


def check_graph(
    graph: Graph,
    network: Network,
    file: Path,
    backend: OnnxRuntimeBackend,
    reference: Reference,
) -> list[Check]:
    """Compare one graph's whole outputs at every size; samples go to ``reference``."""
    checks, spec = [], graph.spec
    with backend.open_files([(spec, OnnxFile(file))]) as session:
        for name, tensor, expected, measured in _pairs(graph.module, session, network):
            queries = network.independent_rows(spec, tensor, expected.shape)
            checks.append(check_tensor(name, spec.tolerance, expected, measured, queries))
            reference[name] = sample(expected).copy()
    return checks


def check_without_rounding(
    graph: Graph, network: Network, file: Path, tolerance: float
) -> list[Check]:
    """Compare a graph of half precision at every size, all of it in float32 on both sides."""
    module = copy.deepcopy(graph.module).float()
    files = [(graph.spec, OnnxFile(file))]
    with Bf16ReferenceBackend(rounding=False).open_files(files) as session:
        return [
            check_tensor(f"{name}, without rounding", tolerance, expected, measured)
            for name, _, expected, measured in _pairs(module, session, network)
        ]


INT8_TOLERANCE = 2e-2
"""Tolerance of int8 graphs, between libraries and kernels, not between int8 and float32.

Two libraries round one number in thousands to another of the 255 steps, and later layers see
other numbers. The trained ``tiny`` differs by 4e-3 of the largest number between ONNX Runtime's
integer kernels, OpenVINO's, and the same graph in float32. A kernel that saturates, a wrong scale
or a wrong layer errs by far more."""


def check_int8(
    spec: GraphSpec,
    network: Network,
    file: Path,
    backend: OnnxRuntimeBackend,
    reference: Reference,
) -> list[Check]:
    """Compare a back end's int8 kernels with the graph's definition, at every size.

    The definition is computed in float32 between the graph's own rounding steps, without an
    optimiser. Samples of it go to ``reference``.
    """
    checks, files = [], [(spec, OnnxFile(file))]
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


@torch.inference_mode()
def _pairs(
    module: torch.nn.Module, session: Session, network: Network
) -> Iterator[tuple[str, TensorSpec, HostArray, HostArray]]:
    """Yield each output of the session's one graph at every size: its name and contract,
    PyTorch's numbers and the graph's numbers.
    """
    (graph,) = session.graphs.values()
    for case, inputs, outputs in run_cases(graph, network):
        expected = module(*(torch.from_numpy(array) for array in inputs.values()))
        tensors = (expected,) if isinstance(expected, torch.Tensor) else expected
        for spec, tensor in zip(graph.spec.outputs, tensors, strict=True):
            (found,) = session.ops.to_host([outputs[spec.name]]).arrays()
            yield f"{case} {spec.name}", spec, tensor.numpy(), found
