"""Run graphs that are fixed to a number of expressions (``export --static-shapes``) in chunks.

Frames are letterboxed to a fixed height and width (``graph_io/frame_geometry.py``). Tokens and
remembered frames are padded where they are stacked, and masks mark the padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rvos_deploy.graph_io.graph_spec import ROWS, TensorSpec
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.backends.base import Session


def run_rows(session: Session, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a graph on any number of expressions, even where its contract fixes that number.

    A fixed graph runs once for each chunk. The last chunk repeats its last expression as padding;
    the outputs of the padding are dropped.

    Args:
        session: has the graph.
        name: the name of the graph.
        inputs: inputs of :meth:`Graph.run`, for any number of expressions.

    Returns:
        Outputs for the same number of expressions.

    Raises:
        InputError, BackendError: as :meth:`Graph.run`.
    """
    graph, ops = session.graphs[name], session.ops
    axis = graph.spec.axis(ROWS)
    if axis is None or not axis.fixed:
        return graph.run(inputs)
    of_rows = [tensor.name for tensor in graph.spec.inputs if _has_rows(tensor)]
    rows, size = inputs[of_rows[0]].shape[0], axis.maximum
    if rows == size:
        return graph.run(inputs)
    chunks: dict[str, list[Tensor]] = {tensor.name: [] for tensor in graph.spec.outputs}
    for start in range(0, rows, size):
        chunk = np.minimum(np.arange(start, start + size), rows - 1)
        outputs = graph.run(
            {**inputs, **{tensor: ops.gather(inputs[tensor], chunk) for tensor in of_rows}}
        )
        kept = np.arange(min(size, rows - start))
        for tensor in graph.spec.outputs:
            value = outputs[tensor.name]
            chunks[tensor.name].append(ops.gather(value, kept) if _has_rows(tensor) else value)
    return {
        tensor.name: ops.concatenate(chunks[tensor.name])
        if _has_rows(tensor)
        else chunks[tensor.name][0]
        for tensor in graph.spec.outputs
    }


def _has_rows(tensor: TensorSpec) -> bool:
    return bool(tensor.shape) and tensor.shape[0] == ROWS
