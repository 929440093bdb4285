"""Describe OnlineRefer as a family, for the torch-free part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.graph_io.frame_geometry import FrameGeometry, short_side_box, stretch_to_stride
from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.probe import Makers
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.networks.network import Network
from rvos_deploy.networks.online_refer import steps
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.contract import (
    GRAPHS,
    check_contracts,
    probe_cases,
    probe_makers,
)
from rvos_deploy.networks.online_refer.steps import EncodedTokens, OnlineReferSteps
from rvos_deploy.networks.steps import GraphCalls
from rvos_deploy.stream_settings import StreamSettings

TIE = 4
"""Ratio of the excess score that rounding explains to the tolerance of the graphs of a frame.
Two scores may each err by the tolerance, and so may the tracks before them."""
MAXIMUM_SCORE_EXCESS = 0.05
"""Upper bound of that excess. Beyond it, another query is certainly better."""


@dataclass(frozen=True)
class OnlineRefer(Network):
    """Describe the network with one configuration."""

    _config: OnlineReferConfig
    family = "online_refer"
    graphs = GRAPHS
    frame_graphs = ("backbone", "frame_decoder")
    default_mode = "online"
    choice_excess_name = "excess score of another query"
    golden_tensors = (
        "joined",
        "scores",
        "boxes",
        "next_content",
        "next_position",
        "next_box",
        "mask_logits",
    )

    @staticmethod
    def from_dict(model: Mapping[str, object]) -> OnlineRefer:
        """Return the network of a recorded configuration.

        Raises InputError: as ``OnlineReferConfig.from_dict``.
        """
        return OnlineRefer(OnlineReferConfig.from_dict(model))

    @property
    def config(self) -> OnlineReferConfig:
        """Return the configuration."""
        return self._config

    def check_contracts(self, graphs: Mapping[str, GraphSpec]) -> None:
        """Check that these contracts are those of this network."""
        check_contracts(graphs, self._config)

    def probe_cases(self) -> list[dict[str, int]]:
        """Return the sizes at which parity checks run every graph."""
        return probe_cases(self._config)

    @property
    def probe_makers(self) -> Makers:
        """Return makers of token ids, tracks and preferences."""
        return probe_makers(self._config)

    def geometry(
        self, display: tuple[int, int], settings: StreamSettings, fixed: tuple[int, int] | None
    ) -> FrameGeometry:
        """Scale the short side, or fit the box, and stretch both sides to multiples of 32.

        Frames are stretched instead of padded, because convolutions and group norms would see the
        padding.
        """
        if fixed is not None:
            return FrameGeometry(display, fixed, fixed)
        short_side = settings.short_side or self._config.short_side
        return stretch_to_stride(display, settings.size or short_side_box(short_side))

    def with_size(self, settings: StreamSettings, fixed: tuple[int, int] | None) -> StreamSettings:
        """Return the settings with the short side as the default; see the base class."""
        if fixed is None and settings.size is None and settings.short_side is None:
            return replace(settings, short_side=self._config.short_side)
        return super().with_size(settings, fixed)

    def describe_size(self, fixed: tuple[int, int] | None) -> str:
        """Return the short side and the resulting size of a 16:9 frame, or the fixed size."""
        if fixed is not None:
            return f"frames stretched to {fixed[0]}x{fixed[1]}"
        height, width = self._config.input_size
        return f"short side {self._config.short_side} ({height}x{width} of a 16:9 frame)"

    def notes(self, settings: StreamSettings) -> tuple[str, ...]:
        """Name settings without an effect: the network decides every frame at once."""
        changed = {
            "--mode offline": settings.mode == "offline",
            "--lookahead": settings.lookahead > 0,
            "--memory": settings.memory is not None,
            "--anchors": settings.anchors > 0,
        }
        given = [name for name, is_given in changed.items() if is_given]
        if not given:
            return ()
        return (
            f"{', '.join(given)}: OnlineRefer decides each frame from the frames before it, so "
            "this changes no mask; masks come later at most",
        )

    def tokenizer(self, file: Path, content: bytes, graphs: Mapping[str, GraphSpec]) -> Tokenizer:
        """Return RoBERTa's tokenizer."""
        # Imported here, while another thread opens the graphs.
        from rvos_deploy.networks.online_refer.tokenizer import RobertaTokenizer

        tokens = graphs["text_encoder"].axis("L")
        longest = self._config.max_tokens if tokens is None else tokens.maximum
        return RobertaTokenizer(file, content, longest)

    def encode_text(self, calls: GraphCalls, tokenizer: Tokenizer, text: str) -> EncodedTokens:
        """Encode a sentence."""
        return steps.encode_text(calls, tokenizer, text)

    def steps(self, calls: GraphCalls, settings: StreamSettings) -> OnlineReferSteps:
        """Return the network's part in one stream."""
        return OnlineReferSteps(calls, self._config, settings)

    def check_choices(self, choices: NDArray[np.integer]) -> str | None:
        """Check that choices are numbers of queries; see the base class."""
        last = self._config.num_queries - 1
        fits = choices.dtype.kind == "i" and choices.shape[2:] == (1,) and choices.size > 0
        if fits and choices.min() >= 0 and choices.max() <= last and not choices[:, 1:].any():
            return None
        return f"numbers of queries, 0 to {last} in the first frame and 0 from then on,"

    def choice_excess(self, graphs: Mapping[str, GraphSpec]) -> float:
        """Return the allowed excess of a file's best score over that of PyTorch's best query."""
        tolerance = max(graphs[name].tolerance for name in self.frame_graphs)
        return min(TIE * tolerance, MAXIMUM_SCORE_EXCESS)

    @property
    def maximum_choice_excess(self) -> float:
        """Return the excess above which another query is certainly better."""
        return MAXIMUM_SCORE_EXCESS
