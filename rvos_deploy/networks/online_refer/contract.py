"""Name the inputs and outputs of the three graphs (``networks/contract.py`` checks them)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rvos_deploy.graph_io.graph_spec import GraphSpec
from rvos_deploy.graph_io.probe import Makers, Probe
from rvos_deploy.networks import contract
from rvos_deploy.networks.contract import Contract, Tensors
from rvos_deploy.networks.online_refer.config import OnlineReferConfig

_PYRAMID: Tensors = {
    f"res{level}": ("real", (1, f"c{level}", f"H/{2**level}", f"W/{2**level}"))
    for level in range(2, 6)
}
_TOKENS: Tensors = {"text_tokens": ("real", ("E", "L", "dim"))}
_PADDING: Tensors = {"text_padding": ("bool", ("E", "L"))}

CONTRACTS = {
    "backbone": Contract({"frame": ("uint8", (1, "H", "W", 3))}, _PYRAMID),
    "text_encoder": Contract({"token_ids": ("int64", ("E", "L")), **_PADDING}, _TOKENS),
    "frame_decoder": Contract(
        {
            **_PYRAMID,
            **_TOKENS,
            **_PADDING,
            "track_content": ("real", ("E", "dim")),
            "track_position": ("real", ("E", "dim")),
            "track_box": ("float32", ("E", 4)),
            "joined": ("bool", ("E",)),
            "preference": ("float32", ("E", "queries")),
        },
        {
            "scores": ("float32", ("E", "queries")),
            "best": ("int64", ("E",)),
            "boxes": ("float32", ("E", "queries", 4)),
            "next_content": ("real", ("E", "dim")),
            "next_position": ("real", ("E", "dim")),
            "next_box": ("float32", ("E", 4)),
            "mask_logits": ("float32", ("E", "H/4", "W/4")),
        },
    ),
}
GRAPHS = tuple(CONTRACTS)
"""Names of a bundle's graphs, in the order in which they run."""


def probe_cases(config: OnlineReferConfig) -> list[dict[str, int]]:
    """Return the sizes for parity checks: the smallest, uncommon ones, and the bundle's own."""
    height, width = config.input_size
    longest = min(config.max_tokens, 40)
    return [
        {"H": 32, "W": 32, "E": 1, "L": 2},
        {"H": 64, "W": 96, "E": 3, "L": 9},
        {"H": 160, "W": 64, "E": 2, "L": longest},
        {"H": height, "W": width, "E": 1, "L": 12},
    ]


def check_contracts(graphs: Mapping[str, GraphSpec], config: OnlineReferConfig) -> None:
    """Check that these contracts are those of this network.

    Raises:
        BundleError: as ``networks/contract.py``.
    """
    known = {"dim": config.dim, "queries": config.num_queries}
    known |= {f"c{level}": channels for level, channels in enumerate(config.channels, start=2)}
    sizes = contract.Sizes(known, probe_cases(config), config.input_size)
    contract.check_contracts(graphs, CONTRACTS, sizes)


PREFERRED = 1e3
"""Number added to the class logit of a query that must be chosen. Hidden queries have -1e4, so
padding is never chosen."""


def probe_makers(config: OnlineReferConfig) -> Makers:
    """Return makers of the probe inputs whose values have a special meaning."""

    def token_ids(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
        return random.randint(3, config.text_vocabulary, shape)

    return {
        "token_ids": token_ids,
        "track_box": _boxes,
        "joined": _joined,
        "preference": _preference,
    }


def _boxes(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    """Return boxes inside the frame: centres near its middle, sides of 0.1 to 0.5 frames."""
    return np.concatenate(
        [random.uniform(0.3, 0.7, (*shape[:-1], 2)), random.uniform(0.1, 0.5, (*shape[:-1], 2))],
        axis=-1,
    )


def _joined(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    """Return True for every other expression, starting at random with the first or the second."""
    joined: Probe = (np.arange(shape[0]) + random.randint(2)) % 2 == 0
    return joined


def _preference(shape: tuple[int, ...], random: np.random.RandomState) -> Probe:
    """Prefer one query of each expression, so that rounding does not decide which is best."""
    preference = np.zeros(shape)
    preference[np.arange(shape[0]), random.randint(0, shape[1], shape[0])] = PREFERRED
    return preference
