"""Define the interface between a network family and the torch-free part of the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.probe import Makers
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.steps import EncodedText, GraphCalls, Steps
from rvos_deploy.stream_settings import Mode, StreamSettings


class NetworkConfig(Protocol):
    """Define the fields of every family's configuration."""

    @property
    def name(self) -> str:
        """Return the name of the configuration, for people."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Return the (height, width) in pixels of the default box for frames."""

    @property
    def threshold(self) -> float:
        """Return the score above which a candidate belongs to the answer, 0 to 1."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""


class Network(ABC):
    """Describe a family's network by its configuration, without weights and without torch."""

    family: str
    """Name in a bundle's manifest."""
    graphs: tuple[str, ...]
    """Names of the graphs, in the order in which they run."""
    default_mode: Mode = "offline"
    """Default mode of commands for a whole video; ``online`` if waiting changes no mask."""
    choice_excess_name: str = "excess cost of replayed choices"
    """Name of the quantity that ``choice_excess`` bounds, for people."""
    frame_graphs: tuple[str, ...]
    """Names of the graphs that depend only on frame and texts, not on mode, memory or threshold."""
    golden_tensors: tuple[str, ...] = ()
    """Names of the inputs and outputs of graphs that golden vectors record for every frame."""

    @property
    @abstractmethod
    def config(self) -> NetworkConfig:
        """Return the configuration."""

    @abstractmethod
    def check_contracts(self, graphs: Mapping[str, GraphSpec]) -> None:
        """Check that these contracts are those of this network.

        Raises BundleError: the message names the missing or different part.
        """

    @abstractmethod
    def probe_cases(self) -> list[dict[str, int]]:
        """Return the sizes of all axes at which parity checks run every graph."""

    @property
    def probe_makers(self) -> Makers:
        """Return makers of probe inputs by tensor name, in place of ``graph_io/probe.py``'s own."""
        return {}

    @abstractmethod
    def geometry(
        self, display: tuple[int, int], settings: StreamSettings, fixed: tuple[int, int] | None
    ) -> FrameGeometry:
        """Return how a frame fits the network's input.

        Args:
            display: (height, width) of the frame in pixels.
            settings: settings of the stream, which may name a size.
            fixed: fixed (height, width) of the graphs; None if they accept several sizes.

        Raises InputError: the frame cannot be segmented.
        """

    def with_size(self, settings: StreamSettings, fixed: tuple[int, int] | None) -> StreamSettings:
        """Return the settings, with the default size if they name neither box nor short side.

        Args:
            settings: settings of a stream.
            fixed: fixed (height, width) of the graphs; None if they accept several sizes.
        """
        if settings.size is not None or settings.short_side is not None:
            return settings
        return replace(settings, size=fixed or self.config.input_size)

    def describe_size(self, fixed: tuple[int, int] | None) -> str:
        """Return the default size of frames, for people; ``fixed`` as in ``with_size``."""
        height, width = fixed or self.config.input_size
        return f"{height}x{width} box"

    def notes(self, settings: StreamSettings) -> tuple[str, ...]:
        """Return one line for each setting that has no effect on this network's masks."""
        return ()

    @abstractmethod
    def tokenizer(self, file: Path, content: bytes, graphs: Mapping[str, GraphSpec]) -> Tokenizer:
        """Return the tokenizer of a bundle.

        Args:
            file: path for errors.
            content: content of the file.
            graphs: contracts, which may limit the tokens of a sentence.

        Raises BundleError: the file is not the tokenizer of a bundle.
        """

    @abstractmethod
    def encode_text(self, calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedText:
        """Encode a sentence.

        Raises InputError: the sentence is empty. BackendError: a graph failed.
        """

    @abstractmethod
    def steps(self, calls: GraphCalls, settings: StreamSettings) -> Steps:
        """Return the network's part in one stream."""

    def check_choices(self, choices: NDArray[np.int64]) -> str | None:
        """Return None for valid recorded choices [E,T,K], else a description of valid ones."""
        return None

    def choice_excess(self, graphs: Mapping[str, GraphSpec]) -> float:
        """Return the excess cost of replayed choices over the best ones that rounding explains."""
        return 0.0

    @property
    def maximum_choice_excess(self) -> float:
        """Return the excess cost above which replayed choices follow another object."""
        return 0.0

    def independent_rows(
        self, spec: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...]
    ) -> NDArray[np.int64] | None:
        """Return the row of each value of an output whose single rows may exceed the tolerance.

        Rounding in the last bit decides which inputs such a row reads. None: no row may exceed it.
        """
        return None
