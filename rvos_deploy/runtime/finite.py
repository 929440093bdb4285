"""Refuse outputs of graphs that hold NaN, or infinity where infinity has no meaning.

On the host every output is checked. That costs 0.15 of 138 ms for one expression at 256x448 on two
cores, and 0.8 of 519 ms for five. On a GPU only tensors that are downloaded anyway are checked:
cues, scores, and one flag for each map of mask logits. NaN propagates to these tensors. NaN that
ends inside a graph is not seen: deformable attention reads zero at a sampling location that is NaN
(tests/runtime/test_finite.py counts the weights that cause this).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.tensors import HostCopy, Tensor


class NotFiniteError(BackendError):
    """An output of a graph is not finite."""


MASK_LOGITS = "mask_logits"
"""Output in which -infinity hides a pixel for certain."""


def require_finite(graph: str, outputs: Mapping[str, Tensor], occasion: str) -> None:
    """Refuse NumPy outputs of a graph that are not finite; outputs of other types pass.

    Args:
        graph: the name of the graph.
        outputs: outputs by name.
        occasion: the reason of the run, for example "frame 12".

    Raises:
        NotFiniteError: an output holds NaN, or infinity without a meaning.
    """
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
            continue
        # One NaN makes the maximum NaN.
        sound = array.max() < np.inf if name == MASK_LOGITS else np.isfinite(array).all()
        if not sound:
            raise not_finite(graph, name, occasion)


def not_finite(graph: str, output: str, occasion: str) -> NotFiniteError:
    """Return the error of an output that is not finite."""
    return NotFiniteError(
        f"{occasion}: graph {graph} gave {output} that are no finite numbers; its weights are "
        "damaged, or its numbers too large for its precision: check with 'rvos-deploy verify "
        "BUNDLE', and export again (instead of half precision with --precision fp32)"
    )


class MapCheck:
    """Check that maps of mask logits on a device are finite. The first caller waits."""

    def __init__(self, copy: HostCopy, graph: str, occasion: str) -> None:
        """``copy``: from ``TensorOps.finite_maps``; the others as in :func:`require_finite`."""
        self._copy: HostCopy | None = copy
        self._graph, self._occasion = graph, occasion
        self._sound = False
        self._lock = threading.Lock()

    def require(self) -> None:
        """Raise NotFiniteError unless all maps are finite; each call raises."""
        with self._lock:
            if self._copy is not None:
                (sound,) = self._copy.arrays()
                self._sound, self._copy = bool(sound.all()), None
        if not self._sound:
            raise not_finite(self._graph, MASK_LOGITS, self._occasion)
