"""The network of Pan, Fang and Lu as a family: what the torch-free part asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.tokenizer import CONTEXT_LENGTH, Tokenizer
from rvos_deploy.networks.network import Network
from rvos_deploy.networks.pan2024 import steps
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.contract import GRAPHS, check_contracts, probe_cases
from rvos_deploy.networks.pan2024.expression import EncodedSentence
from rvos_deploy.networks.pan2024.slots import MAX_MATCH_COST
from rvos_deploy.networks.steps import GraphCalls
from rvos_deploy.stream_settings import StreamSettings

SLOT_TIE = 16
"""PyTorch's slots may cost more than the best ones here by so many times what the graph that gives
their cues may err by. Two queries changed places: four costs, of cues with weights of together 4.4
(``slots.py``), may each err by that, which makes 17.6. In float16 it is 0.16."""
MAXIMUM_SLOT_EXCESS = MAX_MATCH_COST / 4
"""And never by more than this: so far apart, it is another object."""


@dataclass(frozen=True)
class Pan2024(Network):
    """The network with one configuration."""

    _config: ModelConfig
    family = "pan2024"
    graphs = GRAPHS
    frame_graphs = ("backbone", "frame_decoder")

    @staticmethod
    def from_dict(model: Mapping[str, object]) -> Pan2024:
        """Return the network that ``ModelConfig.as_dict`` described; raises InputError as that."""
        return Pan2024(ModelConfig.from_dict(model))

    @property
    def config(self) -> ModelConfig:
        """Its configuration."""
        return self._config

    def check_contracts(self, graphs: Mapping[str, GraphSpec]) -> None:
        """Make sure that these are the graphs of this network."""
        check_contracts(graphs, self._config)

    def probe_cases(self) -> list[dict[str, int]]:
        """Return the sizes at which every graph is checked."""
        return probe_cases(self._config)

    def tokenizer(self, file: Path, content: bytes, graphs: Mapping[str, GraphSpec]) -> Tokenizer:
        """Return CLIP's tokenizer."""
        tokens = graphs["text_encoder"].axis("L")
        return Tokenizer(file, content, CONTEXT_LENGTH if tokens is None else tokens.maximum)

    def encode_text(self, calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedSentence:
        """Encode a sentence."""
        return steps.encode_text(calls, tokenizer, text)

    def steps(self, calls: GraphCalls, settings: StreamSettings) -> steps.Pan2024Steps:
        """Return the network's part in one stream."""
        return steps.Pan2024Steps(calls, self._config, settings)

    def check_choices(self, choices: NDArray[np.integer]) -> str | None:
        """Choices are orders of the queries."""
        slots = np.arange(self._config.num_queries)
        fits = choices.dtype.kind == "i" and choices.shape[2:] == slots.shape
        if fits and (np.sort(choices, axis=-1) == slots).all():
            return None
        return f"orders of {len(slots)} queries"

    def choice_excess(self, graphs: Mapping[str, GraphSpec]) -> float:
        """What PyTorch's slots may cost more than the best ones of a file."""
        return default_slot_excess(graphs["frame_decoder"].tolerance)

    @property
    def maximum_choice_excess(self) -> float:
        """A quarter of what a match may cost."""
        return MAXIMUM_SLOT_EXCESS

    def independent_rows(
        self, spec: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...]
    ) -> NDArray[np.int64] | None:
        """Queries of graphs in half precision read through masks: each may differ by itself."""
        if spec.name != "frame_decoder" or spec.precision == "fp32" or len(tensor.shape) > 3:
            return None
        numbers = np.arange(shape[0] * shape[1]).reshape(*shape[:2], *[1] * (len(shape) - 2))
        return np.broadcast_to(numbers, shape)


def model_config(network: Network) -> ModelConfig:
    """Return the configuration of a network of this family.

    Raises InputError: the network is of another family.
    """
    if not isinstance(network, Pan2024):
        raise InputError(
            f"the bundle holds a network of the family '{network.family}'; this needs a bundle of "
            f"'{Pan2024.family}'"
        )
    return network.config


def default_slot_excess(tolerance: float) -> float:
    """What PyTorch's slots may cost more than the best where ``--maximum-slot-excess`` says nothing
    else; ``tolerance``: of the graph that gives the cues.
    """
    return min(SLOT_TIE * tolerance, MAXIMUM_SLOT_EXCESS)
