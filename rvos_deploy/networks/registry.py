"""Network families by name: one line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rvos_deploy.errors import BundleError
from rvos_deploy.networks.network import Network

NetworkFactory = Callable[[Mapping[str, object]], Network]
"""Makes a network from the ``model`` of a manifest.

Raises InputError: an unknown key, a missing one, or a value of another type or beyond its bounds.
"""


def _pan2024(model: Mapping[str, object]) -> Network:
    from rvos_deploy.networks.pan2024.network import Pan2024

    return Pan2024.from_dict(model)


FIRST_FAMILY = "pan2024"
"""Bundles that were made before there were families name none."""
FAMILIES: dict[str, NetworkFactory] = {"pan2024": _pan2024}
"""Add a family of your own before a bundle of it is opened: ``FAMILIES["mine"] = make``."""


def network_of(family: str, model: Mapping[str, object]) -> Network:
    """Return the network that a manifest describes.

    Raises:
        BundleError: an unknown family.
        InputError: as the family's factory.
    """
    if family not in FAMILIES:
        raise BundleError(
            f"the bundle holds a network of the unknown family '{family}', known: "
            f"{', '.join(FAMILIES)}; pip install --upgrade rvos-deploy"
        )
    return FAMILIES[family](model)
