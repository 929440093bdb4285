"""Configurations survive JSON, and damaged ones are refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.networks.online_refer.config import PRESETS, OnlineReferConfig, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert OnlineReferConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_the_trunk_gives_four_widths() -> None:
    assert preset("onlinerefer-r50").channels == (256, 512, 1024, 2048)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown preset 'r50'; known: onlinerefer-r50, online"):
        preset("r50")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 0}, "dim must be a whole number, 1 to"),
        ({"dim": True}, "dim"),
        ({"dim": 1 << 20}, "dim must be a whole number"),
        ({"dim": 96, "norm_groups": 1, "num_heads": 7}, "dim 96 is not a multiple of num_heads 7"),
        ({"text_heads": 5}, "text_width 64 is not a multiple of text_heads 5"),
        ({"dim": 6, "num_heads": 1, "norm_groups": 1, "pixel_norm_groups": 1}, "multiple of 4"),
        ({"resnet_blocks": [1, 1, 0, 1]}, "resnet_blocks must be a whole number"),
        ({"resnet_blocks": [1, 1, 1]}, "length 4"),
        ({"input_size": [0, 160]}, "size 0x160 is not a multiple of 32"),
        ({"threshold": 2.0}, "threshold must lie in 0..1"),
        ({"backbone": "swin"}, "swin"),
        ({"colour": 1}, "unknown model configuration keys: colour"),
    ],
)
def test_a_damaged_record_is_refused(changed: dict[str, object], message: str) -> None:
    values = {**preset("onlinerefer-tiny").as_dict(), **changed}
    with pytest.raises(InputError, match=message) as error:
        OnlineReferConfig.from_dict(values)
    assert "\n" not in str(error.value)


def test_missing_keys_are_named() -> None:
    values = preset("onlinerefer-tiny").as_dict()
    del values["dim"], values["ffn"]
    with pytest.raises(InputError, match="dim, ffn missing"):
        OnlineReferConfig.from_dict(values)


def test_an_unknown_backbone_is_refused_in_python() -> None:
    with pytest.raises(InputError, match="unknown backbone 'swin'; known: resnet"):
        replace(preset("onlinerefer-tiny"), backbone="swin")  # type: ignore[arg-type]
