"""Read a published checkpoint into the network, or initialise the network with random weights.

The authors' file is a pickle of weights, optimizer state and ``argparse.Namespace``. The reader
allows nothing else in a pickle, so no code in it runs.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.networks.modules.published_file import read_published
from rvos_deploy.networks.online_refer.config import OnlineReferConfig
from rvos_deploy.networks.online_refer.modules.dynamic_masks import split_parameters
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer

ALIAS, ORIGINAL = "transformer.decoder.bbox_embed.", "bbox_embed."
"""Prefixes of the same weights."""

_SHOWN = 3
"""Names that an error lists of each kind."""

_SIDES = ((0, 1), (0, -1), (1, 1), (1, -1))
"""Axis and sign of the four distances whose sum has the shape of a diamond."""
_RADIUS, _EDGE = 50.0, 20.0
"""Distances from a query's centre, along one axis, to the edge of its mask, and from the edge to
the end of the slope of its logits. Slopes over the whole frame would leave more pixels near 0 than
bfloat16 can decide. [pixels]"""
_LOGIT = 3.0
"""Magnitude of logits away from the edge."""
_SCALE = 1 / 20
"""Scale of coordinates, with which the controller's random part moves edges by a few pixels.
[1/pixels]"""
_REFINEMENT = 0.08
"""Scale of random weights that refine boxes: a layer moves a box by about a percent of the frame.
Nothing pulls boxes back to an object, so rounding errors of half precision add up over frames."""
_DEFORMATION = 0.15
"""Share of random weights in the output of a query's controller."""


def is_ignored(name: str) -> bool:
    """Tell whether a published file may contain this name, which is not a weight of the network."""
    return (
        name == "text_encoder.embeddings.position_ids"
        or name.startswith("criterion.")
        or name.endswith(("total_params", "total_ops"))
    )


def load_checkpoint(network: OnlineRefer, file: Path) -> None:
    """Load a published checkpoint, all of it or nothing: ``torch.save`` or safetensors.

    Raises:
        InputError: the file is missing or damaged, holds more than weights and a Namespace, or has
            another configuration; then the message names the weights that differ.
    """
    stored = read_published(file, "--checkpoint", allowed=(argparse.Namespace,))
    state = {name: value for name, value in stored.items() if not is_ignored(name)}
    if problems := list(_problems(state, network.state_dict())):
        raise InputError(
            f"checkpoint {file} is not of configuration '{network.config.name}': it "
            f"{'; it '.join(problems)}; give the file that the authors published"
        )
    network.load_state_dict(state)


def _problems(state: Mapping[str, object], own: Mapping[str, Tensor]) -> Iterator[str]:
    """Describe the differences between a file's weights and the network's, one kind at a time."""
    yield from _listed("lacks", own.keys() - state.keys())
    yield from _listed("has unknown", state.keys() - own.keys())
    types, sizes, values = [], [], []
    sound: dict[str, Tensor] = {}
    for name in sorted(state.keys() & own.keys()):
        found, wanted = state[name], own[name]
        if not isinstance(found, Tensor):
            types.append(f"{name} {type(found).__name__} instead of numbers")
        elif not _is_plain(found) or not found.is_floating_point():
            kind = str(found.dtype) if _is_plain(found) else f"{found.layout} on {found.device}"
            types.append(f"{name} {kind} instead of {wanted.dtype}")
        elif found.shape != wanted.shape:
            sizes.append(f"{name} {list(found.shape)} instead of {list(wanted.shape)}")
        elif not bool(torch.isfinite(found).all()):
            values.append(name)
        else:
            sound[name] = found
    yield from _listed("has other types for", types)
    yield from _listed("has other sizes for", sizes)
    yield from _listed("has NaN or infinity in", values)
    yield from _listed(f"has other numbers than {ORIGINAL}* in", _unequal_aliases(sound))


def _is_plain(x: Tensor) -> bool:
    return x.layout == torch.strided and x.device.type == "cpu" and not x.is_nested


def _unequal_aliases(state: Mapping[str, Tensor]) -> list[str]:
    pairs = {name: ORIGINAL + name.removeprefix(ALIAS) for name in state if name.startswith(ALIAS)}
    return [
        alias
        for alias, name in pairs.items()
        if name in state and not torch.equal(state[alias], state[name])
    ]


def _listed(problem: str, names: set[str] | list[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield f"{problem} {', '.join(sorted(names)[:_SHOWN])}{more}"


@torch.no_grad()
def random_network(config: OnlineReferConfig, seed: int) -> OnlineRefer:
    """Build the network in eval mode with random weights, whose masks have edges.

    The weights depend only on the seed and on their names. Matrices preserve the magnitude of their
    inputs, as at the start of a training.
    """
    network = OnlineRefer(config).eval()
    for name, weight in network.state_dict().items():
        if not name.startswith(ALIAS):
            weight.copy_(_random_weight(name, weight.shape, seed))
    _shape_masks(network)
    return network


def _shape_masks(network: OnlineRefer) -> None:
    """Make every query's mask a diamond around its centre, which the features deform.

    Purely random dynamic convolutions would make masks that are empty or full.
    """
    config, last = network.config, network.controller.layers[-1]
    assert isinstance(last, nn.Linear)
    w1, w2, w3, _, b2, b3 = split_parameters(last.bias[None], config.dim, config.mask_channels)
    of_coordinates = w1[0, :, config.dim :]
    last.weight *= _DEFORMATION
    last.bias.zero_()
    random_w1 = split_parameters(last.weight.T, config.dim, config.mask_channels)[0]
    random_w1[..., config.dim :] *= _SCALE
    for channel, (axis, sign) in enumerate(_SIDES):
        of_coordinates[channel, axis] = sign * _SCALE
    # With d the sum of the sides: relu(outer - d) - relu(inner - d), from 2 * edge to 0, steepened.
    steep = _LOGIT / (_EDGE * _SCALE)
    for channel, reach in enumerate((_RADIUS + _EDGE, _RADIUS - _EDGE)):
        w2[0, channel, : len(_SIDES)] = -steep
        b2[0, channel] = steep * _SCALE * reach
        w3[0, :, channel] = 1 - 2 * channel
    b3 -= _LOGIT


def _random_weight(name: str, shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    x = torch.randn(shape, generator=generator)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return 1 + 0.1 * x.abs()
    if last in ("bias", "in_proj_bias", "running_mean"):
        return 0.05 * x
    if name == "query_embed.weight":
        return x  # queries start at places of their own
    if x.ndim == 1:
        return 1 + 0.1 * x
    if name.startswith(ORIGINAL) and ".layers.2." in name:
        x = _REFINEMENT * x
    return x / math.sqrt(math.prod(shape[1:]))
