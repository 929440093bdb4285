"""A bundle's own thresholds, one for each mode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import rvos_deploy
from rvos_deploy.bundle.folder import open_bundle


@pytest.fixture
def bundle(bundle_copy: Callable[..., Path]) -> Path:
    return bundle_copy("manifest.json")


def used(bundle: Path, mode: str) -> float:
    settings = rvos_deploy.StreamSettings(mode=mode)  # type: ignore[arg-type]
    with (
        rvos_deploy.load(bundle) as segmenter,
        segmenter.stream(["a square"], settings) as stream,
    ):
        return stream.settings.threshold


def test_each_mode_has_its_own(rvos: Callable, bundle: Path) -> None:
    exported = open_bundle(bundle).config.threshold
    result = rvos("set-threshold", bundle, "--online", 0.3)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"{bundle}: threshold {exported} offline, 0.3 online\n"
    assert (used(bundle, "offline"), used(bundle, "online")) == (exported, 0.3)
    rvos("set-threshold", bundle, "--offline", 0.7)
    assert (used(bundle, "offline"), used(bundle, "online")) == (0.7, 0.3)
    shown = rvos("inspect", bundle).stdout
    assert "threshold 0.7 offline, 0.3 online (set on 20" in shown
    assert f"the export had {exported})" in shown


def test_what_was_proved_is_still_proved(rvos: Callable, bundle: Path) -> None:
    """Every query passes at 0 and none at 1: with either, the masks of the clip would be others."""
    before = json.loads((bundle / "manifest.json").read_text())
    for score in (0, 1):
        assert rvos("set-threshold", bundle, "--offline", score, "--online", score).code == 0
        result = rvos("verify", bundle)
        assert (result.code, result.stderr) == (0, "")
    after = json.loads((bundle / "manifest.json").read_text())
    assert {key for key in after if before.get(key) != after[key]} == {
        "thresholds",
        "manifest_sha256",
    }


def test_refusals(rvos: Callable, bundle: Path) -> None:
    manifest = (bundle / "manifest.json").read_bytes()
    for arguments, said in (
        ((bundle,), "no threshold was given; pass --offline SCORE"),
        ((bundle, "--offline", 1.5), "the offline threshold must lie in 0..1, found 1.5"),
        ((bundle, "--online", "nan"), "the online threshold must lie in 0..1, found nan"),
        (("tiny", "--online", 0.3), "comes with the package and stays as it is"),
        ((bundle / "none", "--online", 0.3), "is not a bundle"),
    ):
        result = rvos("set-threshold", *arguments)
        assert result.code == 2
        assert said in result.error
    assert (bundle / "manifest.json").read_bytes() == manifest


def test_a_damaged_bundle_is_not_signed_again(
    rvos: Callable, bundle_copy: Callable[..., Path]
) -> None:
    bundle = bundle_copy("manifest.json", "mask_head.onnx")
    file = bundle / "mask_head.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    result = rvos("set-threshold", bundle, "--online", 0.3)
    assert result.code == 2
    assert "was changed since the export" in result.error
