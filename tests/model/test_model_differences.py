"""Test that docs/differences.md lists every switch, with the values of the presets."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from rvos_deploy.networks.pan2024.config import PRESETS, ModelConfig, preset

DOCUMENT = Path(__file__).parents[2] / "docs" / "differences.md"

SIZES = {
    "name", "clip", "clip_pretrained", "dim", "num_queries", "num_heads", "encoder_layers",
    "encoder_ffn", "num_points", "fusion_heads", "fusion_dim", "fusion_layer_scale",
    "frame_decoder_layers", "video_decoder_layers", "decoder_ffn", "norm_groups",
    "position_cycles", "input_size", "threshold",
}  # fmt: skip
"""How much of what the papers have; no part of ours."""
CLAIMED = {"initializer", "text_fusion"}
"""What the paper itself claims."""


def table() -> dict[str, list[str]]:
    """Return the values in tiny, large and large-paper, by switch."""
    section = DOCUMENT.read_text(encoding="utf-8").split("## Switches")[1].split("\n## ")[0]
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert rows[0][1:5] == ["switch", "tiny", "large", "large-paper"]
    return {row[1]: row[2:5] for row in rows[2:]}


def test_every_field_is_a_size_a_claim_of_the_paper_or_a_listed_switch() -> None:
    """A new field belongs in one of the three sets, or in the table."""
    known = {field.name for field in fields(ModelConfig)}
    assert set(table()) == known - SIZES - CLAIMED


@pytest.mark.parametrize("switch", table())
def test_the_table_has_the_values_of_the_presets(switch: str) -> None:
    expected = [str(getattr(preset(name), switch)) for name in ("tiny", "large", "large-paper")]
    assert table()[switch] == expected
    assert getattr(preset("base"), switch) == getattr(preset("large"), switch)


@pytest.mark.parametrize("switch", table())
def test_large_paper_has_none_of_our_switches(switch: str) -> None:
    """``tiny`` has all our switches on, so every value must differ from that of ``tiny``."""
    assert getattr(preset("large-paper"), switch) != getattr(preset("tiny"), switch)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("field", sorted(CLAIMED))
def test_every_preset_has_the_claims_of_the_paper(name: str, field: str) -> None:
    assert getattr(preset(name), field) == {"initializer": "aligned", "text_fusion": True}[field]
