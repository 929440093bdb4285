"""Numbers that no graph may give: NaN, and infinity where none is meant.

Everything that a graph leaves on the host is looked at (0.15 ms of the 138 ms that one expression
takes at 256x448 on two cores, 0.8 of 519 ms for five). On a GPU only what comes down anyway is:
cues and scores, and one flag for each map of mask logits. A graph there that gives NaN passes it on
to those. What ends inside a graph cannot be seen from outside: a sampling location of the
deformable attention that is NaN reads zero (tests/runtime/test_finite.py counts such weights).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from rvos_deploy.errors import BackendError
from rvos_deploy.graph_io.tensors import HostCopy, Tensor


class NotFiniteError(BackendError):
    """A graph gave what is no number."""


MASK_LOGITS = "mask_logits"
"""Output whose -infinity says that a pixel is hidden for certain."""


def require_finite(graph: str, outputs: Mapping[str, Tensor], occasion: str) -> None:
    """Refuse outputs of a graph that are not numbers; those that are not NumPy arrays pass.

    Args:
        graph: its name.
        outputs: by name.
        occasion: what it ran for, as "frame 12".

    Raises:
        NotFiniteError: one holds NaN, or an infinity that cannot be meant.
    """
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
            continue
        # A maximum is NaN where any number is.
        sound = array.max() < np.inf if name == MASK_LOGITS else np.isfinite(array).all()
        if not sound:
            raise not_finite(graph, name, occasion)


def not_finite(graph: str, output: str, occasion: str) -> NotFiniteError:
    """The error of an output that is not a number."""
    return NotFiniteError(
        f"{occasion}: graph {graph} gave {output} that are no finite numbers; its weights are "
        "damaged, or its numbers too large for its precision: check with 'rvos-deploy verify "
        "BUNDLE', and export again (instead of half precision with --precision fp32)"
    )


class MapCheck:
    """Whether maps of mask logits on a device hold numbers; waited for by whoever asks first."""

    def __init__(self, copy: HostCopy, graph: str, occasion: str) -> None:
        """``copy``: of ``TensorOps.finite_maps``; the others as in :func:`require_finite`."""
        self._copy: HostCopy | None = copy
        self._graph, self._occasion = graph, occasion
        self._sound = False
        self._lock = threading.Lock()

    def require(self) -> None:
        """Raise NotFiniteError unless all of them do; every time that it is asked."""
        with self._lock:
            if self._copy is not None:
                (sound,) = self._copy.arrays()
                self._sound, self._copy = bool(sound.all()), None
        if not self._sound:
            raise not_finite(self._graph, MASK_LOGITS, self._occasion)
