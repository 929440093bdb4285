"""Define the interface between a stream and a network family, without torch.

A stream handles order, lookahead, expressions and results (``runtime/stream.py``). A family handles
its graphs: how a frame's outputs change the state of an expression, when masks are decided, and how
they are made. One ``Steps`` object belongs to one stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import HostArray, Tensor, TensorOps


class EncodedText(Protocol):
    """Hold a sentence after the text encoder. A family adds what its graphs need."""

    @property
    def text(self) -> str:
        """Return the sentence."""


class PendingArrays(Protocol):
    """Hold outputs of a graph that are being copied to the host."""

    def get(self) -> dict[str, HostArray]:
        """Wait for the copies, and return the arrays by name. Call this once.

        Raises BackendError: an array holds NaN or infinity.
        """


class GraphCalls(Protocol):
    """Run graphs for the steps (``runtime/graph_calls.py`` implements it)."""

    @property
    def ops(self) -> TensorOps:
        """Return the operations on tensors between graphs."""

    def spec(self, graph: str) -> GraphSpec:
        """Return the contract of a graph."""

    def padded_size(self, graph: str, axis: str, size: int) -> int:
        """Return the size to pad an axis of a graph's inputs to."""

    def run(self, graph: str, inputs: Mapping[str, Tensor], occasion: str) -> dict[str, Tensor]:
        """Run a graph; errors name the ``occasion`` ("frame 12").

        Raises BackendError: the back end failed, or an output holds NaN or infinity.
        """

    def to_host(self, graph: str, outputs: Mapping[str, Tensor], occasion: str) -> PendingArrays:
        """Queue copies of a graph's outputs to the host."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block under this name."""


class StartedFrame(Protocol):
    """Hold a frame whose graphs are queued."""

    def advance(self) -> tuple[Tensor, ...]:
        """Wait for the frame, and update every expression. Call this in the order of the frames.

        Returns:
            Tensors from which this frame's masks are made later, on the host or on a device.
        """


class MaskMaker(Protocol):
    """Make the masks of one frame, for E expressions."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Return the scores float32 [E,N]: the probability that an expression means a candidate."""

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """Return the thresholds float32 [E] that scores must exceed by the stream's settings."""

    def mask_logits(self, thresholds: NDArray[np.float32]) -> Tensor:
        """Return mask logits float32 [E, padded height/4, padded width/4].

        The masks unite the candidates whose score exceeds the threshold [E] of their expression.
        """


class Decision(Protocol):
    """Make the masks of all pending frames after one decision."""

    def mask_maker(
        self,
        kept: Sequence[Tensor],
        then: Sequence[int],
        now: Sequence[int],
        occasion: str,
    ) -> MaskMaker:
        """Return the mask maker of one frame.

        Args:
            kept: tensors from ``StartedFrame.advance``.
            then: numbers of the expressions that were present when the frame started.
            now: numbers of the expressions whose masks are requested.
            occasion: description of the frame for errors.
        """


@dataclass(frozen=True)
class Replay:
    """Compare replayed choices with the back end's own.

    Args:
        excess: largest excess of their cost over the best cost here; 0 if no choice costs more.
        tie: description of its position; "" if the choices agree.
    """

    excess: float = 0.0
    tie: str = ""


class ChoiceRecorder(Protocol):
    """Record or replay a stream's discrete choices: which query follows which object."""

    def orders(self) -> NDArray[np.int64]:
        """Return the choices int64 [E,T,K]."""

    def replay(self) -> Replay:
        """Return how the replayed choices compare. Call this after the last frame."""


class Steps(ABC):
    """Define a network family's part in one stream."""

    @abstractmethod
    def add(self, number: int, text: EncodedText) -> None:
        """Follow another expression from the next frame on."""

    @abstractmethod
    def remove(self, number: int) -> None:
        """Stop following an expression."""

    @abstractmethod
    def start(self, image: Tensor, occasion: str) -> StartedFrame:
        """Queue the graphs of a frame for all present expressions, of which there is at least one.

        Args:
            image: network input uint8 [1,h,w,3].
            occasion: description of the frame for errors.
        """

    @abstractmethod
    def decide(self, occasion: str) -> Decision | None:
        """Decide for every expression that has seen a frame; return None if none has."""

    @abstractmethod
    def record_choices(self, replayed: NDArray[np.int64] | None = None) -> ChoiceRecorder:
        """Record the choices of the present expressions, from the first frame on.

        Parity checks use this. Rounding decides between equally good choices, so another library
        is compared along the reference's choices.

        Args:
            replayed: choices int64 [E,T,K] to make instead; None: the family's own choices.
        """
