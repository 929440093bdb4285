"""PyTorch against the exported files: every graph at several sizes, then the masks of a clip.

Graphs in half precision are compared twice. As they are, within what rounding after other
operators may cost, and without the queries that the last bit decides (``MAXIMUM_UNDECIDED_QUERIES``
of ``verification``): too much to prove an operator by. And without any rounding, the network's
weights and the file's computed in float32: what differs is the rounding of constants, and a wrong
operator, weight or order of axes cannot hide in that, whatever the machine and the query.
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
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.graphs import WITHOUT_ROUNDING, Graph
from rvos_deploy.networks.pan2024.modules.inference import segment_clip, tokenize
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.parity.comparison import sample
from rvos_deploy.parity.verification import (
    CLIP_LOGITS,
    CLIP_ORDER,
    Check,
    judge,
    query_of_values,
    run_cases,
)
from rvos_deploy.runtime.backends.base import Backend, HostArray, Runner
from rvos_deploy.runtime.backends.onnxruntime.bf16_reference import Bf16ReferenceBackend

Reference = dict[str, NDArray[Any]]


def check_graph(
    graph: Graph, network: RvosNetwork, file: Path, backend: Backend, reference: Reference
) -> list[Check]:
    """Compare one graph's whole outputs at every size; samples go to ``reference``."""
    checks, spec = [], graph.spec
    with backend.runner(spec, OnnxFile(file)) as runner:
        for name, tensor, expected, measured in _pairs(graph.module, runner, network.config):
            queries = query_of_values(spec, tensor, expected.shape)
            checks.append(judge(name, spec.tolerance, expected, measured, queries))
            reference[name] = sample(expected).copy()
    return checks


def check_without_rounding(graph: Graph, network: RvosNetwork, file: Path) -> list[Check]:
    """Compare a graph of half precision at every size, all of it in float32 on both sides."""
    module, tolerance = copy.deepcopy(graph.module).float(), WITHOUT_ROUNDING[graph.spec.precision]
    with Bf16ReferenceBackend(rounding=False).runner(graph.spec, OnnxFile(file)) as runner:
        return [
            judge(f"{name}, without rounding", tolerance, expected, measured)
            for name, _, expected, measured in _pairs(module, runner, network.config)
        ]


@torch.inference_mode()
def _pairs(
    module: torch.nn.Module, runner: Runner, config: ModelConfig
) -> Iterator[tuple[str, TensorSpec, HostArray, HostArray]]:
    """Every output at every size: its name and contract, PyTorch's and the runner's."""
    for case, inputs, outputs in run_cases(runner, config):
        expected = module(*(torch.from_numpy(array) for array in inputs.values()))
        tensors = (expected,) if isinstance(expected, torch.Tensor) else expected
        for spec, tensor in zip(runner.spec.outputs, tensors, strict=True):
            found = runner.to_host(outputs[spec.name])
            yield f"{case} {spec.name}", spec, tensor.numpy(), found


def record_clip(
    network: RvosNetwork,
    tokenizer: Tokenizer,
    contracts: Mapping[str, GraphSpec],
    reference: Reference,
) -> None:
    """PyTorch's answer to the probe clip, offline, into ``reference``: united mask logits float32
    [E,T,h,w] at stride 4, and the query that takes each slot, int64 [E,T,N].

    ``contracts``: of the graphs, by name: they say what the clip is fitted into.
    """
    probe = clip_probe(contracts)
    frames = [torch.from_numpy(resize_frame(frame, probe.geometry)) for frame in probe.frames]
    ids = tokenize(tokenizer, PROBE_EXPRESSIONS)
    answer = segment_clip(network, frames, ids, "top1")
    reference[CLIP_LOGITS] = answer.mask_logits.numpy()
    reference[CLIP_ORDER] = answer.order.numpy()
