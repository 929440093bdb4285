"""What a network family does with the frames of a stream: the seam between a stream and a network.

A stream knows order, lookahead, expressions and results (``runtime/stream.py``). A family knows its
graphs: what a frame's outputs do to the state of an expression, when masks are decided, and how
they are made. Its ``Steps`` belong to one stream. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.tensors import HostArray, Tensor, TensorOps


class EncodedText(Protocol):
    """A sentence after the text encoder. A family adds what its graphs need."""

    @property
    def text(self) -> str:
        """The sentence."""


class PendingArrays(Protocol):
    """Outputs of a graph on their way to the host."""

    def get(self) -> dict[str, HostArray]:
        """Wait, and return them by name.

        Raises BackendError: one holds NaN or infinity. Call this once.
        """


class GraphCalls(Protocol):
    """How steps run graphs (``runtime/graph_calls.py``)."""

    @property
    def ops(self) -> TensorOps:
        """What is done to tensors between graphs."""

    def spec(self, graph: str) -> GraphSpec:
        """Return a graph's contract."""

    def run(self, graph: str, inputs: Mapping[str, Tensor], occasion: str) -> dict[str, Tensor]:
        """Run a graph; ``occasion`` ("frame 12") is for the error.

        Raises BackendError: the back end failed, or the graph gave NaN or infinity.
        """

    def to_host(self, graph: str, outputs: Mapping[str, Tensor], occasion: str) -> PendingArrays:
        """Queue copies of a graph's outputs to the host."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block under this name."""


class StartedFrame(Protocol):
    """A frame whose graphs were queued."""

    def advance(self) -> tuple[Tensor, ...]:
        """Wait for the frame, and advance every expression by it. Frames advance in order.

        Returns:
            What the masks of this frame will be made of, on the host or on a device.
        """


class MaskMaker(Protocol):
    """Makes the masks of one frame, for E expressions."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Score of each candidate for an expression, float32 [E,N]: the probability that the
        expression refers to it.
        """

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """What a candidate's score must exceed by the stream's settings: float32 [E]."""

    def mask_logits(self, thresholds: NDArray[np.float32]) -> Tensor:
        """Make mask logits float32 [E, padded height/4, padded width/4] of the candidates whose
        score is greater than the threshold [E] of their expression.
        """


class Decision(Protocol):
    """What the masks of all frames that wait are made by."""

    def mask_maker(
        self,
        kept: Sequence[Tensor],
        then: Sequence[int],
        now: Sequence[int],
        occasion: str,
    ) -> MaskMaker:
        """Return what makes the masks of one frame.

        Args:
            kept: what ``StartedFrame.advance`` returned.
            then: numbers of the expressions that were present when the frame was started.
            now: those of them whose masks are wanted.
            occasion: for an error.
        """


@dataclass(frozen=True)
class Replay:
    """How choices that were replayed compare with this back end's own.

    Args:
        excess: by how much they cost more than the best here, at most; 0 where none did.
        tie: where that was, in words; empty where the choices agree.
    """

    excess: float = 0.0
    tie: str = ""


class ChoiceRecorder(Protocol):
    """Discrete choices of a stream (which query follows which object), recorded or replayed."""

    def orders(self) -> NDArray[np.int64]:
        """Return what was chosen, [E,T,K]."""

    def replay(self) -> Replay:
        """Return how the replayed choices compare; call it after the last frame."""


class Steps(ABC):
    """A network family's part in one stream."""

    @abstractmethod
    def geometry(self, display: tuple[int, int]) -> FrameGeometry:
        """Return how a frame of this displayed (height, width) is fitted for the network."""

    @abstractmethod
    def add(self, number: int, text: EncodedText) -> None:
        """Follow one more expression, from the next frame on."""

    @abstractmethod
    def remove(self, number: int) -> None:
        """Stop following an expression."""

    @abstractmethod
    def start(self, image: Tensor, occasion: str) -> StartedFrame:
        """Queue the graphs of a frame, for all expressions present (at least one).

        ``image``: network input uint8 [1,h,w,3].
        """

    @abstractmethod
    def decide(self, occasion: str) -> Decision | None:
        """Decide for every expression that has seen a frame; None where none has."""

    @abstractmethod
    def record_choices(self, replayed: NDArray[np.int64] | None = None) -> ChoiceRecorder:
        """Record the choices of the expressions present, from the first frame on.

        Checks of parity use this: where two choices are equally good, rounding decides, so that
        another library is compared along the reference's own choices.

        Args:
            replayed: choices [E,T,K] to make instead; None: the family's own.
        """
