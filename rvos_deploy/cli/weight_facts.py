"""Describe a bundle's weights, their license and the vocabulary for ``inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rvos_deploy.bundle.manifest import SourceFile, WeightsRecord

Fact = tuple[str, str]
"""A label and its value."""


def weight_facts(weights: WeightsRecord) -> list[Fact]:
    """Return facts about weights and vocabulary, each with its label; values may have lines."""
    origin = weights.origin
    facts = [("weights", _network(weights))]
    if origin is None or origin.clip is not None:
        facts.append(("CLIP part", _clip(weights)))
    if origin is not None and (tokenizer := origin.tokenizer) is not None:
        lines = [line for file in tokenizer.files for line in _file(file)]
        lines += _terms(tokenizer.license, tokenizer.attribution)
        facts.append(("vocabulary", "\n".join(lines)))
    return facts


def _network(weights: WeightsRecord) -> str:
    if weights.random:
        return f"random, seed {weights.seed} (to try the pipeline; masks mean nothing)"
    text = f"{weights.checkpoint} ({_hash(weights.checkpoint_sha256)})"
    if weights.origin is None:
        return text
    network = weights.origin.network
    if network.run is not None:
        text += f", {network.checkpoint} of training run {network.run}"
    if network.step is not None:
        text += f", step {network.step}"
    # A file that others publish does not name a configuration of this package.
    if network.recorded or network.license is None:
        text += _recorded(network.recorded, "this configuration")
    lines = [text, *_from(network.url), *_terms(network.license, network.attribution)]
    return "\n".join(lines)


def _clip(weights: WeightsRecord) -> str:
    if weights.origin is None:
        return f"{weights.clip or 'not recorded'} (an older export, which does not say more)"
    clip = weights.origin.clip
    assert clip is not None  # networks without a CLIP part have no such fact
    if clip.random_seed is not None:
        return f"random, seed {clip.random_seed}"
    where = clip.tag or f"{clip.file} ({_hash(clip.sha256)})"
    text = f"{where}, fingerprint {clip.fingerprint[:12]}..."
    return text + _recorded(clip.recorded, "this fingerprint")


def _file(file: SourceFile) -> list[str]:
    return [f"{file.file} ({_hash(file.sha256)})", *_from(file.url)]


def _from(url: str | None) -> list[str]:
    return [] if url is None else [f"from {url}"]


def _terms(license: str | None, attribution: str | None) -> list[str]:
    terms = "; ".join(text for text in (license, attribution) if text is not None)
    return [terms] if terms else []


def _hash(sha256: str | None) -> str:
    return f"sha256 {(sha256 or '')[:12]}..."


def _recorded(recorded: bool, what: str) -> str:
    return f"; its checkpoint {'names' if recorded else 'does not name'} {what}"
