"""A graph to export, and a whole network of graphs with its weights. A family makes them.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.probe import ClipProbe
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.network import Network


@dataclass(frozen=True)
class Graph:
    """A module to export, in eval mode, and its contract."""

    module: nn.Module
    spec: GraphSpec


@dataclass(frozen=True)
class ClipAnswer:
    """PyTorch's answer to the probe clip, offline.

    Args:
        mask_logits: float32 [E,T,h,w], of every expression in every frame.
        choices: int64 [E,T,K], the discrete choices (``Steps.record_choices``).
    """

    mask_logits: NDArray[np.float32]
    choices: NDArray[np.int64]


@dataclass(frozen=True)
class ExportableNetwork:
    """A network with its weights, as the exporter needs it.

    Args:
        network: what the torch-free part asks of it.
        graphs: in the order in which they run.
        parameters: how many numbers the weights are.
        write_tokenizer: writes ``tokenizer.json``. Argument: the file.
        segment_clip: segments the probe clip with the whole network, offline. Arguments: the clip,
            and the tokenizer as the bundle's graphs accept its ids.
        without_rounding: tolerance of graphs in half precision when both sides compute in float32;
            None: no graph is in half precision.
        packages: names of packages whose versions the manifest records.
    """

    network: Network
    graphs: tuple[Graph, ...]
    parameters: int
    write_tokenizer: Callable[[Path], None]
    segment_clip: Callable[[ClipProbe, Tokenizer], ClipAnswer]
    without_rounding: float | None = None
    packages: tuple[str, ...] = ()


class Float32Edges(nn.Module):
    """A bfloat16 module with float32 inputs and outputs, each cast once, inside the graph.

    NumPy has no bfloat16, so this keeps the runtime, its files and other people's code as they are.
    No number changes: a graph gives bfloat16 numbers in float32, and the next graph's cast finds
    them again. The edges cost twice the bytes where graphs meet: of ``large`` at 448 x 800, 28 MB
    more are written and read for a frame with one expression, 17 us of an H100's 3.35 TB/s.
    """

    def __init__(self, module: nn.Module, narrow: tuple[bool, ...]) -> None:
        """``narrow``: which inputs the module takes in its own type."""
        super().__init__()
        self.module, self.narrow = module, narrow

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the module; its outputs are float32 instead of bfloat16."""
        dtype = next(self.module.parameters()).dtype
        outputs = self.module(
            *(x.to(dtype) if cast else x for x, cast in zip(inputs, self.narrow, strict=True))
        )
        if isinstance(outputs, Tensor):
            return _widen(outputs)
        return tuple(map(_widen, outputs))


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
