"""Initialise from published weights: pixel and transformer decoder of FC-CLIP or Mask2Former.

Both publish the same modules under the same names (Mask2Former, Cheng et al. 2022; FC-CLIP, Yu et
al. 2023). FC-CLIP has the CLIP backbone of ``large``, so its input projections fit too.
``published_names.py`` maps the names. Three differences remain. Their sine positions count pixels
from 1 to W, and ours use pixel centres (half a pixel). Their masked attention has a threshold, and
ours a ramp. Our network fuses text between the loaded layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.networks.modules.published_file import read_published
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.training.published_names import (
    ARITHMETIC,
    HEAD,
    NO_COUNTERPART,
    PIXEL_DECODER,
    PREDICTOR,
    UNUSED,
    ZERO_IF_ABSENT,
    Reading,
    Reasons,
    Shape,
    Source,
    name_map,
)


class Entry(NamedTuple):
    """Hold one entry of the file, under its name in the file."""

    name: str
    value: Any


class Loaded(NamedTuple):
    """Name one loaded weight, its source, and the count of its numbers."""

    name: str
    published: str
    size: int


class LeftOut(NamedTuple):
    """Name a weight that was not loaded, or an unused entry of the file, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class InitReport:
    """Report every weight of the network (loaded, not_loaded) and of the file (unused)."""

    file: Path
    loaded: tuple[Loaded, ...]
    not_loaded: tuple[LeftOut, ...]
    unused: tuple[LeftOut, ...]

    def summary(self) -> str:
        """Return several lines for a person: counts by reason; layers of a stack share a name."""
        millions = sum(weight.size for weight in self.loaded) / 1e6
        total = len(self.loaded) + len(self.not_loaded)
        return "\n".join(
            (
                f"loaded {len(self.loaded)} of {total} weights ({millions:.1f} M numbers) "
                f"from {self.file}:",
                *_grouped(LeftOut(w.name, w.name.split(".")[0]) for w in self.loaded),
                f"not loaded, {len(self.not_loaded)} weights of the network:",
                *_grouped(self.not_loaded),
                f"unused, {len(self.unused)} entries of the file:",
                *_grouped(self.unused),
            )
        )


def init_from(network: RvosNetwork, file: Path) -> InitReport:
    """Load the weights that an FC-CLIP or Mask2Former checkpoint shares with the network.

    Args:
        network: changed in place, unless an error is raised.
        file: safetensors, or a ``torch.save`` file that ``weights_only=True`` reads. Files of
            detectron2 have the weights under "model".

    Raises:
        InputError: the file has another format or could run code, the arithmetic of the
            configuration differs, or no weight matches.
    """
    _check_arithmetic(network.config)
    state = _current_names(read_published(file, "--init-from"))
    sources = name_map(network.config)
    values: dict[str, Tensor] = {}
    loaded: list[Loaded] = []
    not_loaded: list[LeftOut] = []
    for name, mine in network.state_dict().items():
        found = _read_weight(name, mine, sources.get(name), state, values)
        if isinstance(found, LeftOut):
            not_loaded.append(found)
        else:
            values[name], published = found
            loaded.append(Loaded(name, published, mine.numel()))
    report = InitReport(
        file,
        tuple(loaded),
        tuple(not_loaded),
        _unused(state, sources, values, not_loaded, network.config),
    )
    if not loaded:
        raise InputError(_nothing(report, network.config, state, sources))
    network.load_state_dict(values, strict=False)
    return report


def _check_arithmetic(config: ModelConfig) -> None:
    """Refuse a configuration that the weights would fit but compute differently in."""
    other = [
        f"{name} {getattr(config, name)} instead of {value}"
        for name, value in ARITHMETIC.items()
        if getattr(config, name) != value
    ]
    if other:
        raise InputError(
            f"configuration '{config.name}' cannot start from FC-CLIP or Mask2Former weights: it "
            f"has {', '.join(other)}; change that, or train without --init-from"
        )


def _read_weight(
    name: str,
    mine: Tensor,
    source: Source | None,
    state: Mapping[str, Entry],
    values: Mapping[str, Tensor],
) -> tuple[Tensor, str] | LeftOut:
    """Return the value and published name of one of our weights, or why there is none."""
    if source is None:
        return LeftOut(name, _reason(name, NO_COUNTERPART))
    has_weight = name.endswith(".bias") and name.removesuffix("bias") + "weight" in values
    if source.published not in state:
        if has_weight and name in ZERO_IF_ABSENT:
            return torch.zeros_like(mine), "zero: the published convolution has no bias"
        return LeftOut(name, f"the file has no {source.published}")
    entry, shape = state[source.published], tuple(mine.shape)
    misfit = _misfit(entry.value, shape, source.reading)
    if not misfit and name.endswith(".bias") and not has_weight:
        misfit = "its weight was not loaded"
    if misfit:
        return LeftOut(name, misfit)
    return source.reading.read(entry.value, shape), entry.name


def _misfit(value: Any, ours: Shape, reading: Reading) -> str | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return "no floating-point tensor in the file"
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"a {value.layout} tensor on {value.device} in the file"
    found, needed = tuple(value.shape), reading.needs(ours)
    enough = reading.more_rows and found[:1] > needed[:1] and found[1:] == needed[1:]
    if found == needed or enough:
        return None
    return f"size {list(found)} in the file, {list(needed)} needed"


def _unused(
    state: Mapping[str, Entry],
    sources: Mapping[str, Source],
    values: Mapping[str, Tensor],
    not_loaded: Iterable[LeftOut],
    config: ModelConfig,
) -> tuple[LeftOut, ...]:
    used = {sources[name].published for name in values}
    misfits = {sources[name].published: why for name, why in not_loaded if name in sources}
    return tuple(
        LeftOut(
            entry.name,
            misfits.get(name) or _beyond(name, config) or _reason(name, UNUSED),
        )
        for name, entry in state.items()
        if name not in used
    )


def _beyond(published: str, config: ModelConfig) -> str | None:
    """Return why a layer of a deeper published stack is not used; None for other weights."""
    for stack, layers in (
        (re.escape(PIXEL_DECODER) + r"transformer\.encoder\.layers", config.encoder_layers),
        (re.escape(PREDICTOR) + r"transformer_\w+_layers", config.frame_decoder_layers),
    ):
        match = re.match(stack + r"\.(\d+)\.", published)
        if match and int(match[1]) >= layers:
            return f"layers beyond the {layers} of this configuration"
    return None


def _reason(name: str, reasons: Reasons) -> str:
    for pattern, reason in reasons:
        if re.match(pattern, name):
            return reason
    return "no counterpart"


def _nothing(
    report: InitReport,
    config: ModelConfig,
    state: Mapping[str, Entry],
    sources: Mapping[str, Source],
) -> str:
    """Return the message for a file without matching weights: other names, or other sizes."""
    fitting = next((out for out in report.not_loaded if _has(out, state, sources)), None)
    if fitting is None:
        return (
            f"{report.file} is no FC-CLIP or Mask2Former checkpoint: it has no weights named "
            f"{PIXEL_DECODER}* or {PREDICTOR}*, but {', '.join(list(state)[:3]) or 'nothing'}; a "
            "checkpoint of rvos-deploy is continued with --resume"
        )
    return (
        f"nothing in {report.file} fits configuration '{config.name}': {fitting.name} has "
        f"{fitting.reason}; use a configuration of the published sizes, such as 'large'"
    )


def _has(out: LeftOut, state: Mapping[str, Entry], sources: Mapping[str, Source]) -> bool:
    return out.name in sources and sources[out.name].published in state


def _grouped(outs: Iterable[LeftOut]) -> Iterator[str]:
    """Yield a line for each reason: count, reason, and names (all names where sizes differ)."""
    groups: dict[str, list[str]] = {}
    for name, reason in outs:
        groups.setdefault(reason, []).append(name)
    for reason, names in groups.items():
        folded = list(dict.fromkeys(re.sub(r"(layers|blocks)\.\d+\.", r"\1.*.", n) for n in names))
        shown = folded if reason.startswith("size ") else folded[:3]
        more = [f"and {len(folded) - len(shown)} more"] if len(folded) > len(shown) else []
        yield f"  {len(names):5} {reason}: {', '.join([*shown, *more])}"


def _current_names(state: Mapping[str, Any]) -> dict[str, Entry]:
    """Return entries by present names; the oldest files have the pixel decoder under the head."""

    def current(name: str) -> str:
        if name.startswith(HEAD) and not name.startswith((PIXEL_DECODER, PREDICTOR)):
            return PIXEL_DECODER + name.removeprefix(HEAD)
        return name

    return {current(str(name)): Entry(str(name), value) for name, value in state.items()}
