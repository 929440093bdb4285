"""Name the inputs and outputs of the five graphs (``networks/contract.py`` checks them)."""

from __future__ import annotations

from collections.abc import Mapping

from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.networks import contract
from rvos_deploy.networks.contract import Contract, Tensors
from rvos_deploy.networks.pan2024.config import ModelConfig

_PYRAMID: Tensors = {
    f"res{level}": ("real", (1, f"c{level}", f"H/{2**level}", f"W/{2**level}"))
    for level in range(2, 6)
}
_TEXT: Tensors = {
    "text_tokens": ("real", ("E", "L", "dim")),
    "sentence": ("real", ("E", "dim")),
    "text_padding": ("bool", ("E", "L")),
}
_FEATURES: Tensors = {"mask_features": ("real", ("E", "dim", "H/4", "W/4"))}
_OF_FRAME: Tensors = {"frame_mask_embeddings": ("real", ("E", "slots", "dim"))}
_SCORES: Tensors = {"scores": ("float32", ("E", "slots"))}
_OF_VIDEO: Tensors = {"mask_embeddings": ("real", ("E", "slots", "dim"))}


CONTRACTS = {
    "backbone": Contract({"frame": ("uint8", (1, "H", "W", 3))}, _PYRAMID),
    "text_encoder": Contract({"token_ids": ("int64", ("E", "L"))}, _TEXT),
    "frame_decoder": Contract(
        {**_PYRAMID, **_TEXT},
        {
            **_FEATURES,
            "frame_queries": ("real", ("E", "slots", "dim")),
            **_OF_FRAME,
            "slot_values": ("real", ("E", "slots", "dim")),
            "slot_logits": ("real", ("E", "slots")),
            "slot_position": ("float32", ("E", "slots", 5)),
            "slot_content": ("real", ("E", "slots", "content")),
            "slot_score": ("float32", ("E", "slots")),
        },
    ),
    "video_decoder": Contract(
        {
            "memory": ("real", ("E", "M", "slots", "dim")),
            "memory_ages": ("float32", ("E", "M")),
            "memory_empty": ("bool", ("E", "M")),
            "video_queries": ("real", ("E", "slots", "dim")),
            **_TEXT,
        },
        {**_SCORES, **_OF_VIDEO},
    ),
    "mask_head": Contract(
        {**_SCORES, "threshold": ("float32", ("E",)), **_OF_VIDEO, **_OF_FRAME, **_FEATURES},
        {"mask_logits": ("float32", ("E", "H/4", "W/4"))},
    ),
}
GRAPHS = tuple(CONTRACTS)
"""Names of a bundle's graphs, in the order in which they run."""


def probe_cases(config: ModelConfig) -> list[dict[str, int]]:
    """Return the sizes for parity checks: the smallest, uncommon ones, and the bundle's own."""
    height, width = config.input_size
    return [
        {"H": 32, "W": 32, "E": 1, "L": 2, "M": 1},
        {"H": 64, "W": 96, "E": 3, "L": 9, "M": 4},
        {"H": 160, "W": 64, "E": 2, "L": 77, "M": 17},
        {"H": height, "W": width, "E": 1, "L": 12, "M": 64},
    ]


def check_contracts(graphs: Mapping[str, GraphSpec], config: ModelConfig) -> None:
    """Check that these contracts are those of this network.

    Raises:
        BundleError: as ``networks/contract.py``.
    """
    known = {"dim": config.dim, "slots": config.num_queries}
    sizes = contract.Sizes(known, probe_cases(config), config.input_size)
    contract.check_contracts(graphs, CONTRACTS, sizes)
