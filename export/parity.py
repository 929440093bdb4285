"""PyTorch against the exported files: every graph at several sizes, then the masks of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rvos_deploy.export.graphs import Graph
from rvos_deploy.model.inference import segment_clip, tokenize
from rvos_deploy.model.network import RvosNetwork
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.comparison import sample
from rvos_deploy.runtime.geometry import fit_frame, resize_frame
from rvos_deploy.runtime.probe import PROBE_BOX, PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.runtime.tokenizer import Tokenizer
from rvos_deploy.runtime.verification import Check, judge, run_cases

Reference = dict[str, NDArray[Any]]


@torch.inference_mode()
def check_graph(
    graph: Graph, network: RvosNetwork, file: Path, backend: Backend, reference: Reference
) -> list[Check]:
    """Compare one graph's whole outputs at every size; samples go to ``reference``."""
    checks = []
    with backend.runner(graph.spec, file) as runner:
        for case, inputs, outputs in run_cases(runner, network.config):
            expected = graph.module(*(torch.from_numpy(array) for array in inputs.values()))
            tensors = (expected,) if isinstance(expected, torch.Tensor) else expected
            for spec, tensor in zip(graph.spec.outputs, tensors, strict=True):
                name = f"{case} {spec.name}"
                measured = runner.to_host(outputs[spec.name])
                checks.append(judge(name, graph.spec.tolerance, tensor.numpy(), measured))
                reference[name] = sample(tensor.numpy()).copy()
    return checks


def clip_mask_logits(network: RvosNetwork, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """PyTorch's united mask logits of the probe clip, offline: float32 [E,T,h,w] at stride 4."""
    clip = probe_clip()
    geometry = fit_frame((clip.shape[1], clip.shape[2]), PROBE_BOX)
    frames = [torch.from_numpy(resize_frame(frame, geometry)) for frame in clip]
    ids = tokenize(tokenizer, PROBE_EXPRESSIONS)
    logits: NDArray[np.float32] = segment_clip(network, frames, ids, "top1").mask_logits.numpy()
    return logits
