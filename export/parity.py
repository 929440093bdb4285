"""Compare PyTorch with the exported files: every graph at several sizes, then a clip's masks.

Graphs in half precision are compared twice. The first comparison runs the graphs as they are. Its
tolerance covers rounding after different operators, and it excludes queries that the last bit
decides (``verification.MAXIMUM_UNDECIDED_QUERIES``). That is too loose to prove an operator. The
second comparison computes both sides in float32. Only the rounding of constants then differs, so a
wrong operator, weight or order of axes cannot hide, on any machine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.graph_io.frame_geometry import resize_frame
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS, clip_probe
from rvos_deploy.graph_io.tensors import HostArray
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.graphs import WITHOUT_ROUNDING, Graph
from rvos_deploy.networks.pan2024.modules.inference import segment_clip, tokenize
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.parity.comparison import sample
from rvos_deploy.parity.verification import (
    CLIP_LOGITS,
    CLIP_ORDER,
    Check,
    judge,
    run_cases,
)
from rvos_deploy.runtime.backends.base import Session
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend

Reference = dict[str, NDArray[Any]]


def check_graph(
    graph: Graph,
    network: RvosNetwork,
    file: Path,
    backend: OnnxRuntimeBackend,
    reference: Reference,
) -> list[Check]:
    """Compare a graph's whole outputs at every size, and add samples to ``reference``."""
    checks, spec = [], graph.spec
    known = Pan2024(network.config)
    with backend.open_files([(spec, OnnxFile(file))]) as session:
        for name, tensor, expected, measured in _pairs(graph.module, session, known):
            queries = known.independent_rows(spec, tensor, expected.shape)
            checks.append(judge(name, spec.tolerance, expected, measured, queries))
            reference[name] = sample(expected).copy()
    return checks


def check_without_rounding(graph: Graph, network: RvosNetwork, file: Path) -> list[Check]:
    """Compare a graph in half precision at every size, with both sides in float32."""
    module, tolerance = copy.deepcopy(graph.module).float(), WITHOUT_ROUNDING[graph.spec.precision]
    files = [(graph.spec, OnnxFile(file))]
    with Bf16ReferenceBackend(rounding=False).open_files(files) as session:
        return [
            judge(f"{name}, without rounding", tolerance, expected, measured)
            for name, _, expected, measured in _pairs(module, session, Pan2024(network.config))
        ]


@torch.inference_mode()
def _pairs(
    module: torch.nn.Module, session: Session, network: Pan2024
) -> Iterator[tuple[str, TensorSpec, HostArray, HostArray]]:
    """Yield every output of the session's one graph at every size.

    Yields:
        Name and contract of the output, PyTorch's numbers, and the graph's numbers.
    """
    (graph,) = session.graphs.values()
    for case, inputs, outputs in run_cases(graph, network):
        expected = module(*(torch.from_numpy(array) for array in inputs.values()))
        tensors = (expected,) if isinstance(expected, torch.Tensor) else expected
        for spec, tensor in zip(graph.spec.outputs, tensors, strict=True):
            (found,) = session.ops.to_host([outputs[spec.name]]).arrays()
            yield f"{case} {spec.name}", spec, tensor.numpy(), found


def record_clip(
    network: RvosNetwork,
    tokenizer: Tokenizer,
    contracts: Mapping[str, GraphSpec],
    reference: Reference,
) -> None:
    """Record PyTorch's answer to the probe clip, offline, in ``reference``.

    The answer has united mask logits float32 [E,T,h,w] at stride 4, and the query in each slot,
    int64 [E,T,N].

    Args:
        network: in eval mode.
        tokenizer: CLIP's.
        contracts: of the graphs by name; they decide the size of the clip.
        reference: receives the arrays.
    """
    probe = clip_probe(contracts)
    frames = [torch.from_numpy(resize_frame(frame, probe.geometry)) for frame in probe.frames]
    ids = tokenize(tokenizer, PROBE_EXPRESSIONS)
    answer = segment_clip(network, frames, ids, "top1")
    reference[CLIP_LOGITS] = answer.mask_logits.numpy()
    reference[CLIP_ORDER] = answer.order.numpy()
