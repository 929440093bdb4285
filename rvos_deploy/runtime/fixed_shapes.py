"""Graphs of fixed sizes (``export --static-shapes``): what a stream has is padded to them.

Height and width are letterboxed (:mod:`geometry`). Tokens and remembered frames are padded where
they are stacked (:mod:`expression`), and marked as padding there. Expressions run in chunks of the
fixed number: see :func:`infer_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.runtime.backends.base import Runner, Value

ROWS = "E"
"""The axis of expressions; the first one of every tensor that has it."""


def fixed_box(graphs: Mapping[str, GraphSpec]) -> tuple[int, int] | None:
    """(height, width) that the graphs are fixed to; None where they take several."""
    fixed = {name: size for spec in graphs.values() for name, size in spec.fixed.items()}
    return (fixed["H"], fixed["W"]) if {"H", "W"} <= fixed.keys() else None


def least(spec: GraphSpec, name: str) -> int:
    """The least size of an axis: what is shorter must be padded to it."""
    axis = spec.axis(name)
    return 1 if axis is None else axis.minimum


def infer_rows(runner: Runner, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Run a graph on any number of expressions, also where its contract fixes that number.

    A fixed graph runs once a chunk. The last chunk repeats its last expression as padding, which
    is an expression like any other; what the padding gives is left out.

    Args:
        runner: of the graph.
        inputs: as :meth:`Runner.infer` takes them, of any number of expressions.

    Returns:
        Outputs of as many expressions as there were.

    Raises:
        InputError, BackendError: as :meth:`Runner.infer`.
    """
    axis = runner.spec.axis(ROWS)
    if axis is None or not axis.fixed:
        return runner.infer(inputs)
    of_rows = [tensor.name for tensor in runner.spec.inputs if _has_rows(tensor)]
    rows, size = int(inputs[of_rows[0]].shape[0]), axis.maximum
    if rows == size:
        return runner.infer(inputs)
    pieces: dict[str, list[Value]] = {tensor.name: [] for tensor in runner.spec.outputs}
    for start in range(0, rows, size):
        chunk = np.minimum(np.arange(start, start + size), rows - 1)
        taken = {name: _gather(runner, inputs[name], chunk) for name in of_rows}
        outputs = runner.infer({**inputs, **taken})
        kept = np.arange(min(size, rows - start))
        for tensor in runner.spec.outputs:
            value = outputs[tensor.name]
            pieces[tensor.name].append(_gather(runner, value, kept) if _has_rows(tensor) else value)
    return {
        tensor.name: _join(runner, pieces[tensor.name]) if _has_rows(tensor) else value
        for tensor in runner.spec.outputs
        for value in pieces[tensor.name][:1]
    }


def _has_rows(tensor: TensorSpec) -> bool:
    return bool(tensor.shape) and tensor.shape[0] == ROWS


def _gather(runner: Runner, value: Value, index: NDArray[np.integer]) -> Value:
    return value[index] if isinstance(value, np.ndarray) else runner.gather(value, index)


def _join(runner: Runner, pieces: Sequence[Value]) -> Value:
    """Rows of several values as one, where the back end keeps them."""
    if len(pieces) == 1:
        return pieces[0]
    if all(isinstance(piece, np.ndarray) for piece in pieces):
        return np.concatenate(pieces)
    return runner.stack([[piece[row] for piece in pieces for row in range(piece.shape[0])]])[0]
