"""Define a graph to export, and a family's whole network of graphs with its weights.

This module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rvos_deploy.graph_io.graph_spec import TOLERANCES, AxisSpec, Dim, GraphSpec, TensorSpec
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.clip_probe import ClipProbe
from rvos_deploy.networks.contract import Contract, Tensors
from rvos_deploy.networks.modules.precision import DTYPES
from rvos_deploy.networks.network import Network

WITHOUT_ROUNDING = {"fp16": 2e-3, "bf16": 1e-2}
"""Tolerance for graphs in half precision when both sides compute in float32. The weights are equal.
But the exporter scales queries and keys of an attention by factors that PyTorch keeps in float32
and the file rounds, by up to 2e-3 in bfloat16 and 2.4e-4 in float16. The trained ``tiny`` differs
by 4e-3 and 3.1e-4."""


@dataclass(frozen=True)
class Graph:
    """Hold a module to export, in eval mode, and its contract."""

    module: nn.Module
    spec: GraphSpec


@dataclass(frozen=True)
class ClipAnswer:
    """Hold PyTorch's answer to the probe clip, offline.

    Args:
        mask_logits: float32 [E,T,h,w], of every expression in every frame.
        choices: int64 [E,T,K], the discrete choices (``Steps.record_choices``).
    """

    mask_logits: NDArray[np.float32]
    choices: NDArray[np.int64]


Encoder = Callable[[Tensor], tuple[Tensor, ...]]
"""Returns the outputs of the graph ``backbone`` for a frame uint8 [1,H,W,3]."""


@dataclass(frozen=True)
class ExportableNetwork:
    """Hold a network with its weights for the exporter.

    Args:
        network: the network for the torch-free part.
        graphs: the graphs in the order in which they run.
        parameters: number of weights.
        write_tokenizer: writes ``tokenizer.json``. Argument: the file.
        segment_clip: segments the probe clip with the whole network, offline. Arguments: the clip,
            the tokenizer whose ids the bundle's graphs accept, and what encodes frames in place of
            the network's backbone (None: nothing).
        without_rounding: tolerance of graphs in half precision when both sides compute in float32;
            None: no graph is in half precision.
        packages: names of packages whose versions the manifest records.
    """

    network: Network
    graphs: tuple[Graph, ...]
    parameters: int
    write_tokenizer: Callable[[Path], None]
    segment_clip: Callable[[ClipProbe, Tokenizer, Encoder | None], ClipAnswer]
    without_rounding: float | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphNumbers:
    """Hold the numbers that contracts name.

    Args:
        sizes: values of lower-case sizes, by name.
        dtype: type in which the graphs compute; contracts call it ``real``.
    """

    sizes: Mapping[Dim, Dim]
    dtype: torch.dtype


def make_graphs(
    modules: Mapping[str, nn.Module],
    contracts: Mapping[str, Contract],
    axes: Sequence[AxisSpec],
    numbers: GraphNumbers,
    fixed: Mapping[str, int] | None = None,
) -> tuple[Graph, ...]:
    """Return the graphs of a network with their contracts, in the order of ``contracts``.

    Args:
        modules: modules by the name of the graph.
        contracts: contracts by the name of the graph.
        axes: all named axes.
        numbers: values of the names in the contracts.
        fixed: sizes of fixed axes by the axis's name.
    """
    precision = next(name for name, known in DTYPES.items() if known == numbers.dtype)
    real = str(numbers.dtype).removeprefix("torch.")
    made = []
    for name, contract in contracts.items():
        module = modules[name]
        inputs, outputs = (
            _specs(side, numbers.sizes, real) for side in (contract.inputs, contract.outputs)
        )
        names = {axis for tensor in inputs for axis in tensor.axes}
        of_graph = tuple(_fix(axis, fixed or {}) for axis in axes if axis.name in names)
        if precision == "bf16":
            module = Float32Edges(module, tuple(tensor.dtype == real for tensor in inputs))
            inputs, outputs = _wide_specs(inputs, real), _wide_specs(outputs, real)
        spec = GraphSpec(name, inputs, outputs, of_graph, TOLERANCES[precision], precision)
        made.append(Graph(module.eval(), spec))
    return tuple(made)


def _specs(tensors: Tensors, sizes: Mapping[Dim, Dim], real: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name, real if dtype == "real" else dtype, tuple(sizes.get(dim, dim) for dim in shape)
        )
        for name, (dtype, shape) in tensors.items()
    )


def _wide_specs(tensors: tuple[TensorSpec, ...], dtype: str) -> tuple[TensorSpec, ...]:
    """Return the specs with float32 in place of ``dtype``."""
    return tuple(replace(t, dtype="float32") if t.dtype == dtype else t for t in tensors)


def _fix(axis: AxisSpec, fixed: Mapping[str, int]) -> AxisSpec:
    size = fixed.get(axis.name)
    return axis if size is None else replace(axis, minimum=size, maximum=size)


class Float32Edges(nn.Module):
    """Wrap a bfloat16 module with float32 inputs and outputs, each cast once, inside the graph.

    NumPy has no bfloat16, so these casts spare the runtime, its files and other people's code. No
    number changes: a graph returns bfloat16 numbers in float32, and the next graph's cast restores
    them. The edges double the bytes between graphs: for ``large`` at 448 x 800, 28 MB more are
    written and read per frame with one expression, which is 17 us of an H100's 3.35 TB/s.
    """

    def __init__(self, module: nn.Module, narrow: tuple[bool, ...]) -> None:
        """Wrap ``module``; ``narrow`` tells which inputs it reads in its own type."""
        super().__init__()
        self.module, self.narrow = module, narrow

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the module, and return its bfloat16 outputs in float32."""
        dtype = next(self.module.parameters()).dtype
        outputs = self.module(
            *(x.to(dtype) if cast else x for x, cast in zip(inputs, self.narrow, strict=True))
        )
        if isinstance(outputs, Tensor):
            return _widen(outputs)
        return tuple(map(_widen, outputs))


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x
