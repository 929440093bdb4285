"""Test the configuration: presets, round trip, former names, and errors that name the fix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import rvos_deploy
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.input_size import STRIDE
from rvos_deploy.networks.pan2024.config import (
    PRESETS,
    ModelConfig,
    check_size,
    preset,
)
from rvos_deploy.networks.pan2024.tokenizer import CONTEXT_LENGTH

BUNDLES = Path(rvos_deploy.__file__).parent / "bundles"


def test_large_is_the_scale_of_the_paper() -> None:
    large = preset("large")
    assert large.clip == "convnext_large_d_320"
    assert large.clip_pretrained == "laion2b_s29b_b131k_ft_soup"
    assert (large.encoder_layers, large.frame_decoder_layers, large.video_decoder_layers) == (
        6,
        9,
        6,
    )
    assert (large.dim, large.num_queries, large.num_heads, large.num_points) == (256, 20, 8, 4)
    assert (large.encoder_ffn, large.decoder_ffn, large.fusion_heads) == (1024, 2048, 4)
    assert large.fusion_layer_scale == 1e-4
    assert (large.initializer, large.text_fusion, large.mask_position) == ("aligned", True, True)
    assert (large.input_size, large.threshold) == ((448, 800), 0.5)
    assert (STRIDE, CONTEXT_LENGTH) == (32, 77)


@pytest.mark.parametrize("name", ["large", "base", "tiny"])
def test_round_trip_through_json(name: str) -> None:
    config = replace(preset(name), initializer="weighted", text_fusion=False, threshold=0.7)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.as_dict())))
    assert again == config
    assert isinstance(again.input_size, tuple)
    assert preset(name).name == name
    assert set(PRESETS) == {"large", "large-paper", "base", "tiny"}


def test_records_with_former_names_are_read_and_written_with_present_ones() -> None:
    config = replace(preset("tiny"), trajectory_encoding=False, competition=False)
    former = {"trajectory_encoding": "course", "competition": "rivals"}
    values = {former.get(key, key): value for key, value in config.as_dict().items()}
    assert ModelConfig.from_dict({**values, "alignment": "sight"}) == config
    again = ModelConfig.from_dict({**values, "alignment": "cosine"}).as_dict()
    assert (again["alignment"], again["competition"]) == ("cosine", False)
    assert not {"course", "rivals"} & set(again)


def test_the_packaged_bundle_is_the_preset() -> None:
    manifest = json.loads((BUNDLES / "tiny" / "manifest.json").read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(manifest["model"])
    assert config == replace(preset("tiny"), threshold=config.threshold)


def test_configurations_that_cannot_be_read() -> None:
    values = preset("tiny").as_dict()
    with pytest.raises(InputError, match=r"unknown .* keys: another, colour"):
        ModelConfig.from_dict({**values, "colour": 1, "another": 2})
    for missing in ("name", "clip", "input_size"):
        with pytest.raises(InputError, match=missing):
            ModelConfig.from_dict({k: v for k, v in values.items() if k != missing})
    for bad in (7, [256], [256, 448, 3], None):
        with pytest.raises(InputError):
            ModelConfig.from_dict({**values, "input_size": bad})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 7}, "num_heads 7"),
        ({"dim": 144, "norm_groups": 32}, "norm_groups 32"),
        ({"dim": 66, "num_heads": 2, "norm_groups": 2}, "multiple of 4"),
        ({"fusion_dim": 130}, "fusion_dim 130"),
        ({"initializer": "average"}, "aligned, weighted, sentence"),
        ({"alignment": "iou"}, "unknown alignment 'iou'; known: mask_cues, cosine"),
        ({"referred_head": "mlp"}, "known: product, linear"),
        ({"hiding": "never"}, "known: ramp, threshold"),
        ({"input_size": (100, 448)}, "100x448"),
    ],
)
def test_configurations_that_cannot_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(preset("tiny"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [
        (100, 800, "96x800"),
        (448, 801, "448x800"),
        (447, 799, "448x800"),
        (0, 32, "32x32"),
        (32, 16, "32x32"),
        (-32, 64, "32x64"),
        (1, 1, "32x32"),
    ],
)
def test_a_size_is_two_positive_multiples_of_32(height: int, width: int, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"{height}x{width} is not .*: {nearest}$"):
        check_size(height, width)
    check_size(*(int(side) for side in nearest.split("x")))


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'huge'; known: large, large-paper, base, tiny"):
        preset("huge")
