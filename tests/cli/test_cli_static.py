"""A bundle of fixed sizes on the command line: every command that opens it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis

TEXTS = ("the disc", "a dog", "the square moving to the right")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("mode", [("--mode", "online", "--memory", 8), ()], ids=["online", "file"])
def test_run_with_fewer_as_many_and_more_expressions(
    rvos: Callable,
    static_bundle: Path,
    tiny_bundle: Path,
    video: Path,
    output: Callable,
    tmp_path: Path,
    count: int,
    mode: tuple[str | int, ...],
) -> None:
    """The same masks as by the dynamic bundle in that box."""
    common = (video, *TEXTS[:count], "--fallback", "top1", "--size", "64x96", *mode)
    written = []
    for bundle in (static_bundle, tiny_bundle):
        out = tmp_path / bundle.name
        result = rvos("run", *common, "--bundle", bundle, "--out", out)
        assert (result.code, result.stderr) == (0, "")
        output(out).check(6, count, (48, 80))
        written.append(output(out))
    # 80x48 fills 96 columns and 58 rows of the box in both.
    for expression in range(count):
        for frame in range(6):
            ours, theirs = (one.mask(expression, frame) for one in written)
            np.testing.assert_array_equal(ours, theirs)


def test_run_on_a_portrait_video(
    rvos: Callable, static_bundle: Path, make_video: Callable, output: Callable, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "portrait.mp4", size=(80, 48))
    out = tmp_path / "out"
    result = rvos("run", video, *TEXTS, "--bundle", static_bundle, "--out", out)
    assert (result.code, result.stderr) == (0, "")
    output(out).check(6, 3, (80, 48))
    assert output(out).result["settings"]["size"] == [64, 96]


def test_run_with_a_sentence_that_is_too_long(
    rvos: Callable, static_bundle: Path, video: Path, output: Callable, tmp_path: Path
) -> None:
    text = "the very small star " * 5
    result = rvos("run", video, text, "--bundle", static_bundle, "--out", tmp_path / "out")
    assert result.code == 0
    assert result.stderr.startswith(
        "warning: expression has 22 tokens, the text encoder reads 16: the end of"
    )
    output(tmp_path / "out").check(6, 1, (48, 80))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "128x224"), "size 128x224 is not the one that this bundle is fixed to, 64x96"),
        (("--mode", "online"), "more than the 8 frames that can be remembered; give a smaller"),
    ],
)
def test_run_with_other_sizes_is_refused(
    rvos: Callable,
    static_bundle: Path,
    video: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    result = rvos("run", video, "a dog", "--bundle", static_bundle, "--out", out, *options)
    assert result.code == 2
    assert message in result.error
    assert not out.exists()


def test_run_on_more_frames_than_can_be_remembered(
    rvos: Callable, static_bundle: Path, make_video: Callable, tmp_path: Path
) -> None:
    """The fixes that are offered work; online by itself would not."""
    common = ("run", make_video(tmp_path / "v.mp4", frames=10), "a dog", "--bundle", static_bundle)
    refused = rvos(*common, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "offline at most 8 can be remembered; use --memory 8, or --max-frames 8" in refused.error
    for fix in (("--memory", 8), ("--max-frames", 8)):
        assert rvos(*common, "--out", tmp_path / "out", *fix).code == 0


def test_verify_and_inspect(rvos: Callable, static_bundle: Path, tmp_path: Path) -> None:
    verified = rvos("verify", static_bundle, "--json", tmp_path / "v.json")
    assert verified.code == 0
    assert "checks passed with onnxruntime" in verified.stdout
    assert json.loads((tmp_path / "v.json").read_text())["left_out"] == []
    shown = rvos("inspect", static_bundle).stdout
    assert "ONNX opset 18, fixed at H=64, W=96, E=2, L=16, M=8" in " ".join(shown.split())
    assert "memory float32[2,8,20,128]" in shown


def test_inspect_of_a_bundle_that_is_not_fixed(
    rvos: Callable, tiny_bundle: Path, bundle_copy: Callable[..., Path], resign: Callable
) -> None:
    folder = bundle_copy()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("opsets", None)
    resign(folder, manifest=manifest)
    assert "ONNX opset not recorded, all sizes dynamic" in rvos("inspect", folder).stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["opsets"] = dict.fromkeys(manifest["graphs"], 21)
    resign(folder, manifest=manifest)
    assert "ONNX opset 21, all sizes dynamic" in rvos("inspect", folder).stdout


def test_evaluate(rvos: Callable, static_bundle: Path, tmp_path: Path) -> None:
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    write_mevis(tmp_path / "valid", SplitSpec(seed=2, split="valid", videos=1, config=config))
    common = ("evaluate", static_bundle, "--data", tmp_path, "--jobs", 1)
    result = rvos(*common, "--json", tmp_path / "e.json")
    assert (result.code, result.stderr) == (0, "")
    assert json.loads((tmp_path / "e.json").read_text())["settings"]["size"] == [64, 96]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--opset", 16), "--opset 16 cannot be written in fp32: needs 17 to 25"),
        (("--opset", 18, "--precision", "bf16"), "--opset 18 cannot be written in bf16: needs 22"),
        (("--static-shapes", "64x96"), "--static-shapes '64x96' is not HxW,E,L or HxW,E,L,M"),
        (("--static-shapes", "64x96,2,16", "--size", "64x64"), "leave --size out"),
    ],
)
def test_export_refuses_what_cannot_be_had(
    rvos: Callable, tmp_path: Path, options: tuple[str | int, ...], message: str
) -> None:
    result = rvos("export", "tiny", "--random-weights", "--out", tmp_path / "b", *options)
    assert result.code == 2
    assert message in result.error
    assert list(tmp_path.iterdir()) == []
