"""Damaged manifests of OnlineRefer's bundles: one line of a RvosError, or they work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import (
    Attempt,
    damaged,
    hollow_bundle,
    json_damage,
    many,
    opened_line,
    quick,
    unsigned_manifest,
)
from hypothesis import given, settings


@pytest.fixture(scope="module")
def hollow(online_refer_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hollow_bundle(online_refer_bundle, tmp_path_factory.mktemp("hollow") / "bundle")


@pytest.fixture(scope="module")
def manifest(hollow: Path) -> dict[str, Any]:
    return unsigned_manifest(hollow)


@pytest.fixture(scope="module")
def opens(hollow: Path) -> Callable[[bytes], str]:
    return lambda content: opened_line(hollow, content)


DECODER = ("graphs", "frame_decoder")
TWO = [{"minimum": 1, "maximum": 4, "multiple": 1, "name": name} for name in ("E", "E")]
SMALLEST = {
    "another family": (("family",), "replace", b'"pan2024"', "unknown model configuration keys"),
    "an unknown family": (("family",), "replace", b'"online"', "unknown family 'online', known: "),
    "no family": (("family",), "delete", b"", "unknown model configuration keys"),
    "an unknown key": (("model", "dim"), "rename", b"", "unknown model configuration keys: dim_"),
    "a missing key": (("model", "num_points"), "delete", b"", "num_points missing"),
    "no queries": (("model", "num_queries"), "replace", b"0", "num_queries must be a whole"),
    "other queries": (("model", "num_queries"), "replace", b"6", "has preference as float32"),
    "another width": (("model", "dim"), "replace", b"128", "has text_tokens as float32"),
    "no multiple of heads": (("model", "dim"), "replace", b"60", "multiple of num_heads 8"),
    "another trunk": (("model", "resnet_width"), "replace", b"64", "has res2 as float32"),
    "an unknown trunk": (("model", "backbone"), "replace", b'"swin"', "'swin'"),
    "three stages": (("model", "resnet_blocks"), "cut", b"", "resnet_blocks"),
    "no tokens": (("model", "max_tokens"), "replace", b"0", "max_tokens must be a whole number"),
    "a short side of text": (("model", "short_side"), "replace", b'"360"', "short_side"),
    "a short side of truth": (("model", "short_side"), "replace", b"true", "short_side"),
    "a size of 100": (("model", "input_size"), "replace", b"[100, 160]", "is not a multiple of 32"),
    "a size beyond": (("model", "input_size"), "replace", b"[8192, 8192]", "8192"),
    "a threshold of 2": (("model", "threshold"), "replace", b"2", "threshold must lie in 0..1"),
    "no frame decoder": (DECODER, "delete", b"", "backbone"),
    "no track": ((*DECODER, "inputs", 6), "delete", b"", "has the inputs"),
    "a track of whole numbers": ((*DECODER, "inputs", 6, "dtype"), "replace", b'"int64"', "int64"),
    "a wide track": ((*DECODER, "inputs", 7, "shape", 1), "replace", b"128", "track_position"),
    "three numbers a box": ((*DECODER, "inputs", 8, "shape", 1), "replace", b"3", "track_box"),
    "no scores": ((*DECODER, "outputs", 0), "delete", b"", "lacks the outputs scores"),
    "no best query": ((*DECODER, "outputs", 1), "delete", b"", "lacks the outputs best"),
    "half masks": ((*DECODER, "outputs", 6, "dtype"), "replace", b'"float16"', "mask_logits"),
    "masks at stride 8": ((*DECODER, "outputs", 6, "shape", 1), "replace", b'"H/8"', "mask_logits"),
    "an axis twice": ((*DECODER, "axes"), "replace", json.dumps(TWO).encode(), "has the axes E, E"),
}  # fmt: skip
"""Place, edit, JSON, and what the line says."""


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_damage_of_each_kind_is_one_line(
    manifest: dict[str, Any], opens: Callable[[bytes], str], attempt: Attempt, name: str
) -> None:
    path, edit, fragment, said = SMALLEST[name]
    with attempt("damaged manifests of OnlineRefer"):
        line = opens(damaged(manifest, path, edit, fragment))
        assert said in line


@pytest.mark.parametrize("how", [quick, pytest.param(many, marks=pytest.mark.slow)])
def test_damaged_manifests(
    manifest: dict[str, Any], opens: Callable[[bytes], str], attempt: Attempt, how: settings
) -> None:
    """Any place of the tree, any damage."""

    @how
    @given(json_damage({key: manifest[key] for key in manifest}))
    def attack(content: bytes) -> None:
        with attempt("damaged manifests of OnlineRefer"):
            opens(content)

    attack()
