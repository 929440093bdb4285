"""Describe the network of Pan, Fang and Lu as a family, for the torch-free part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry, letterbox, short_side_box
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.network import Network
from rvos_deploy.networks.pan2024 import steps
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.contract import GRAPHS, check_contracts, probe_cases
from rvos_deploy.networks.pan2024.expression import EncodedSentence
from rvos_deploy.networks.pan2024.slots import MAX_MATCH_COST
from rvos_deploy.networks.steps import GraphCalls
from rvos_deploy.stream_settings import StreamSettings

SLOT_TIE = 16
"""Ratio of the excess cost that rounding explains to the tolerance of the graph with the cues.

When two queries change places, four costs may each err by the tolerance times the weights of the
cues, whose sum is 4.4 (``slots.py``): together 17.6. In float16 the excess is then 0.16."""
MAXIMUM_SLOT_EXCESS = MAX_MATCH_COST / 4
"""Upper bound of that excess. Beyond it, the slot follows another object."""


@dataclass(frozen=True)
class Pan2024(Network):
    """Describe the network with one configuration."""

    _config: ModelConfig
    family = "pan2024"
    graphs = GRAPHS
    frame_graphs = ("backbone", "frame_decoder")
    choice_excess_name = "excess cost of slots"
    golden_tensors = (
        "slot_position",
        "slot_content",
        "slot_score",
        "slot_logits",
        "slot_values",
        "memory_ages",
        "memory_empty",
        "video_queries",
        "scores",
        "threshold",
        "mask_logits",
    )

    @staticmethod
    def from_dict(model: Mapping[str, object]) -> Pan2024:
        """Return the network of a recorded configuration; raises as ``ModelConfig.from_dict``."""
        return Pan2024(ModelConfig.from_dict(model))

    @property
    def config(self) -> ModelConfig:
        """Return the configuration."""
        return self._config

    def check_contracts(self, graphs: Mapping[str, GraphSpec]) -> None:
        """Check that these contracts are those of this network."""
        check_contracts(graphs, self._config)

    def probe_cases(self) -> list[dict[str, int]]:
        """Return the sizes at which parity checks run every graph."""
        return probe_cases(self._config)

    def geometry(
        self, display: tuple[int, int], settings: StreamSettings, fixed: tuple[int, int] | None
    ) -> FrameGeometry:
        """Fit a frame into the box, and pad the sides to multiples of 32 pixels."""
        if fixed is not None:
            # A graph with a fixed size always receives the whole box.
            return letterbox(display, fixed, fixed=True)
        if settings.short_side is not None:
            return letterbox(display, short_side_box(settings.short_side))
        return letterbox(display, settings.size or self._config.input_size)

    def tokenizer(self, file: Path, content: bytes, graphs: Mapping[str, GraphSpec]) -> Tokenizer:
        """Return CLIP's tokenizer."""
        # Imported here, while another thread opens the graphs.
        from rvos_deploy.networks.pan2024.tokenizer import CONTEXT_LENGTH, ClipTokenizer

        tokens = graphs["text_encoder"].axis("L")
        return ClipTokenizer(file, content, CONTEXT_LENGTH if tokens is None else tokens.maximum)

    def encode_text(self, calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedSentence:
        """Encode a sentence."""
        return steps.encode_text(calls, tokenizer, text)

    def steps(self, calls: GraphCalls, settings: StreamSettings) -> steps.Pan2024Steps:
        """Return the network's part in one stream."""
        return steps.Pan2024Steps(calls, self._config, settings)

    def check_choices(self, choices: NDArray[np.integer]) -> str | None:
        """Check that choices are orders of the queries; see the base class."""
        slots = np.arange(self._config.num_queries)
        fits = choices.dtype.kind == "i" and choices.shape[2:] == slots.shape
        if fits and (np.sort(choices, axis=-1) == slots).all():
            return None
        return f"orders of {len(slots)} queries"

    def choice_excess(self, graphs: Mapping[str, GraphSpec]) -> float:
        """Return the allowed excess cost of PyTorch's slots over a file's best ones."""
        return default_slot_excess(max(graphs[name].tolerance for name in self.frame_graphs))

    @property
    def maximum_choice_excess(self) -> float:
        """Return a quarter of the maximum cost of a match."""
        return MAXIMUM_SLOT_EXCESS

    def independent_rows(
        self, spec: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...]
    ) -> NDArray[np.int64] | None:
        """Treat queries in half precision as independent, because each has its own mask."""
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
    """Return the default of ``--maximum-slot-excess``.

    Args:
        tolerance: largest tolerance of the graphs that the cues come from.
    """
    return min(SLOT_TIE * tolerance, MAXIMUM_SLOT_EXCESS)
