"""Register network families by name, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rvos_deploy.errors import BundleError
from rvos_deploy.networks.network import Network

NetworkFactory = Callable[[Mapping[str, object]], Network]
"""Make a network from the ``model`` of a manifest.

Raises InputError: a key is unknown or missing, or a value has another type or exceeds its bounds.
"""


def _pan2024(model: Mapping[str, object]) -> Network:
    from rvos_deploy.networks.pan2024.network import Pan2024

    return Pan2024.from_dict(model)


def _online_refer(model: Mapping[str, object]) -> Network:
    from rvos_deploy.networks.online_refer.network import OnlineRefer

    return OnlineRefer.from_dict(model)


FIRST_FAMILY = "pan2024"
"""Family of old bundles, which name no family."""
FAMILIES: dict[str, NetworkFactory] = {
    "pan2024": _pan2024,
    "online_refer": _online_refer,
}
"""Factories by family. Register yours before you open its bundles: ``FAMILIES["mine"] = make``."""


def network_of(family: str, model: Mapping[str, object]) -> Network:
    """Return the network that a manifest describes.

    Raises:
        BundleError: the family is unknown.
        InputError: the family's factory refuses the configuration.
    """
    if family not in FAMILIES:
        raise BundleError(
            f"the bundle holds a network of the unknown family '{family}', known: "
            f"{', '.join(FAMILIES)}; pip install --upgrade rvos-deploy"
        )
    return FAMILIES[family](model)
