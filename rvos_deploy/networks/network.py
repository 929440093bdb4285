"""A network as the torch-free part of the package knows it. A family defines one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.steps import EncodedText, GraphCalls, Steps
from rvos_deploy.stream_settings import StreamSettings


class NetworkConfig(Protocol):
    """What every family's configuration has."""

    @property
    def name(self) -> str:
        """Of the configuration, for people."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the box that frames are fitted into by default."""

    @property
    def threshold(self) -> float:
        """Score that an expression must pass to be found."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""


class Network(ABC):
    """A family's network with its configuration. Needs neither weights nor torch."""

    family: str
    """Name in a bundle's manifest."""
    graphs: tuple[str, ...]
    """Names of its graphs, in the order in which they run."""
    frame_graphs: tuple[str, ...]
    """Those that read a frame and the texts alone: mode, memory and threshold change nothing."""

    @property
    @abstractmethod
    def config(self) -> NetworkConfig:
        """Its configuration."""

    @abstractmethod
    def check_contracts(self, graphs: Mapping[str, GraphSpec]) -> None:
        """Make sure that these are the graphs of this network.

        Raises BundleError: says what is missing or differs.
        """

    @abstractmethod
    def probe_cases(self) -> list[dict[str, int]]:
        """Return the sizes of all axes at which every graph is checked."""

    @abstractmethod
    def tokenizer(self, file: Path, content: bytes, graphs: Mapping[str, GraphSpec]) -> Tokenizer:
        """Return the tokenizer of a bundle.

        Args:
            file: named in errors.
            content: of the file.
            graphs: their contracts, which may limit the tokens of a sentence.

        Raises BundleError: not the tokenizer of a bundle.
        """

    @abstractmethod
    def encode_text(self, calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedText:
        """Encode a sentence.

        Raises InputError: an empty sentence. BackendError: a graph failed.
        """

    @abstractmethod
    def steps(self, calls: GraphCalls, settings: StreamSettings) -> Steps:
        """Return the network's part in one stream."""

    def check_choices(self, choices: NDArray[np.integer]) -> str | None:
        """Return what recorded choices [E,T,K] must be, where these are something else."""
        return None

    def choice_excess(self, graphs: Mapping[str, GraphSpec]) -> float:
        """Return what replayed choices may cost more than the best, as rounding explains it."""
        return 0.0

    @property
    def maximum_choice_excess(self) -> float:
        """Replayed choices that cost more are no near tie: they follow another object."""
        return 0.0

    def independent_rows(
        self, spec: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...]
    ) -> NDArray[np.int64] | None:
        """Return the row that each value of an output belongs to, where a few rows may differ by
        more than the tolerance since the last bit decides what they read; None: none may.
        """
        return None
