"""Compare PyTorch with the exported files: every graph at several sizes.

Graphs in half precision are compared twice. The first comparison runs the graphs unchanged, and
allows for rounding after different operators and for queries that the last bit decides
(``MAXIMUM_UNDECIDED_QUERIES`` of ``verification``), which is too much to prove an operator. The
second comparison computes both sides in float32 without rounding. Only the rounding of constants
differs then, and cannot hide a wrong operator, weight or order of axes.

An int8 graph is made of the float32 graph, which is compared as usual. Then its kernels are
compared with its own definition (``int8_backbone.py``); ``int8.py`` measures what int8 loses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.graph_io.graph_spec import TensorSpec
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
