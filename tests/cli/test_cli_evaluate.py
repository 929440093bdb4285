"""``evaluate``, and ``make-data sprites`` which makes what it reads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis
from rvos_deploy.datasets.moving_sprites.looks import EMOJI
from rvos_deploy.errors import InputError

SPRITES = ("make-data", "sprites", "--split", "valid", "--no-emoji", "--size", "64x96")
HELD_BY_EVERY_FILE = {"schema", "command", "versions", "machine"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of one split, as make-data writes it."""
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    root = tmp_path_factory.mktemp("sprites")
    write_mevis(root / "valid", SplitSpec(seed=2, split="valid", videos=2, config=config))
    return root


@pytest.fixture
def truth(data: Path, tmp_path: Path) -> Path:
    """The ground truth in the submission layout."""
    root = tmp_path / "truth"
    for video in read_mevis(data).videos:
        for expression in video.expressions:
            folder = root / video.name / expression.id
            folder.mkdir(parents=True)
            for path, mask in zip(video.frames, video.union_masks(expression), strict=True):
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{path.stem}.png")
    return root


def test_make_data_sprites(rvos: Callable, tmp_path: Path) -> None:
    out = tmp_path / "d"
    made = (*SPRITES, "--frames", 8, "--videos", 2, "--seed", 5, "--jobs", 1, "--out", out)
    result = rvos(*made)
    assert result.code == 0
    assert result.stdout == (
        f"{out / 'valid'}: 2 videos of 8 frames, 64x96, without emoji, seed 5\n"
    )
    assert [video.name for video in read_mevis(out).videos] == [
        "sprites_valid_5_000000",
        "sprites_valid_5_000001",
    ]
    assert "exists already" in rvos(*made).error
    assert rvos(*made, "--overwrite").code == 0


def test_make_data_with_emoji(rvos: Callable, emoji_font: dict[str, str], tmp_path: Path) -> None:
    size = ("--size", "64x96", "--frames", 8, "--videos", 4, "--jobs", 1)
    made = rvos("make-data", "sprites", "--split", "train", "--emoji", *size, "--out", tmp_path)
    assert made.code == 0
    assert "with emoji" in made.stdout
    described = json.loads((tmp_path / "train" / "meta_expressions_v2.json").read_text())
    looks = [o["name"] for video in described["videos"].values() for o in video["objects"]]
    assert set(looks) & set(EMOJI)
    sample = rvos("make-data", "sample", "--emoji", "--out", tmp_path / "sample.mp4")
    assert sample.code == 0


@pytest.mark.parametrize("kind", ["sprites", "sample"])
def test_emoji_that_cannot_be_had_are_one_line(
    kind: str, rvos: Callable, no_emoji_font: dict[str, str], tmp_path: Path
) -> None:
    split = ("--split", "valid") if kind == "sprites" else ()
    result = rvos("make-data", kind, *split, "--emoji", "--out", tmp_path / "d")
    assert result.code == 2
    assert "NotoColorEmoji.ttf" in result.error
    assert "--emoji" in result.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("make-data", "sprites", "--out", "d"), "add --split train or --split valid"),
        ((*SPRITES[:5], "--size", "64", "--out", "d"), "size '64' is not of the form HxW"),
        ((*SPRITES[:5], "--frames", "2", "--out", "d"), "at least 8 frames"),
        (("make-data", "sample", "--videos", "2", "--out", "d"), "--videos has no meaning"),
        (("make-data", "films", "--out", "d"), "films"),
    ],
)
def test_make_data_refuses(
    rvos: Callable,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = rvos(*arguments)
    assert result.code == 2
    assert said in result.error
    assert not list(tmp_path.iterdir())


def test_make_data_makes_100_valid_videos_when_none_are_named(
    rvos: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def written(folder: Path, spec: SplitSpec, **_: object) -> None:
        raise InputError(f"{folder} {spec.videos}")

    monkeypatch.setattr("rvos_deploy.datasets.moving_sprites.write_mevis", written)
    arguments = ("make-data", "sprites", "--out", tmp_path, "--split")
    assert rvos(*arguments, "valid").error == f"{tmp_path / 'valid'} 100"
    assert rvos(*arguments, "train").error == f"{tmp_path / 'train'} 1000"


def test_the_truth_scores_1(rvos: Callable, data: Path, truth: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("e.json", "e.csv", "s.zip")]
    result = rvos(
        "evaluate", truth, "--data", data, "--jobs", 1,
        "--json", files[0], "--csv", files[1], "--submission", files[2],
    )  # fmt: skip
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0].split() == ["kind", "J", "F", "J&F", "count"]
    assert "all" in result.stdout
    found = json.loads(files[0].read_text())
    assert set(found) > HELD_BY_EVERY_FILE
    assert (found["schema"], found["command"]) == ("rvos-deploy/evaluate/1", "evaluate")
    assert [found[key] for key in ("j", "f", "j_and_f", "n_acc", "t_acc")] == [1.0] * 5
    assert found["settings"] == {"predictions": str(truth)}
    assert all(means["j_and_f"] == 1.0 for means in found["by_kind"].values())
    assert files[1].read_text().startswith("level,video,expression,")
    masks = len(list(truth.rglob("*.png")))
    assert len(zipfile.ZipFile(files[2]).namelist()) == masks == 8 * found["count"]


def test_what_is_missing_is_named(rvos: Callable, data: Path, truth: Path) -> None:
    first, second = sorted(truth.iterdir())
    second.rename(truth / "elsewhere")
    (first / "0" / "00003.png").unlink()
    result = rvos("evaluate", truth, "--data", data / "valid", "--jobs", 1)
    assert result.code == 0
    expressions = {video.name: len(video.expressions) for video in read_mevis(data).videos}
    assert result.stderr == (
        f"warning: {expressions[second.name]} of {sum(expressions.values())} expressions have no "
        f"masks, 1 mask of others is missing ({first.name}/0/00003.png, {second.name}) and count "
        "0; the split does not have elsewhere; N-acc counts empty masks, not missing ones\n"
    )


def test_masks_under_other_names_are_no_score(rvos: Callable, data: Path, truth: Path) -> None:
    """They gave J&F 0.0000 and exit code 0."""
    for path in truth.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    result = rvos("evaluate", truth, "--data", data, "--jobs", 1)
    assert result.code == 2
    assert "00000.jpg" in result.error
    assert "write masks as PNG" in result.error


def test_a_bundle(rvos: Callable, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    json_file, zip_file = tmp_path / "e.json", tmp_path / "s.zip"
    settings = ("--mode", "online", "--threshold", "0", "--size", "64x96", "--jobs", 1,
                "--lookahead", 2, "--memory", 3, "--anchors", 1)  # fmt: skip
    result = rvos(
        "evaluate", tiny_bundle, "--data", data, *settings,
        "--json", json_file, "--submission", zip_file,
    )  # fmt: skip
    assert (result.code, result.stderr) == (0, "")
    assert ", mevis, online: " in result.stdout
    found = json.loads(json_file.read_text())
    assert found["versions"]["backend"]["name"] == "onnxruntime"
    used = found["settings"]
    assert [used[key] for key in ("mode", "threshold", "size", "fallback")] == [
        "online",
        0.0,
        [64, 96],
        "none",
    ]
    assert [used[key] for key in ("lookahead", "memory", "anchors")] == [2, 3, 1]
    zipfile.ZipFile(zip_file).extractall(tmp_path / "masks")
    again = tmp_path / "again.json"
    rvos("evaluate", tmp_path / "masks", "--data", data, "--jobs", 1, "--json", again)
    assert json.loads(again.read_text())["by_expression"] == found["by_expression"]


def test_refusals(
    rvos: Callable, tiny_bundle: Path, data: Path, truth: Path, tmp_path: Path
) -> None:
    cases = {
        ("evaluate", truth): "--data",
        ("evaluate", truth, "--data", tmp_path): "holds neither meta_expressions.json nor",
        ("evaluate", tmp_path / "none", "--data", data): "is not a folder; pass a bundle, or",
        ("evaluate", truth, "--data", data, "--protocol", "davis"): "--protocol",
        ("evaluate", truth, "--data", data, "--mode", "online"): "--mode has no meaning",
        ("evaluate", truth, "--data", data, "--lookahead", 0): "--lookahead has no meaning",
        ("evaluate", tiny_bundle, "--data", data, "--lookahead", 2): "no meaning offline",
        ("evaluate", truth, "--data", data, "--json", tmp_path): "is a folder; name a file",
        ("evaluate", tiny_bundle, "--data", data, "--size", "65x96"): "65",
        ("evaluate", tiny_bundle, "--data", data, "--threshold", "2"): "threshold must lie in 0..1",
    }
    for arguments, said in cases.items():
        result = rvos(*arguments)
        assert result.code == 2, arguments
        assert said in result.error


def test_the_parent_of_two_splits(rvos: Callable, data: Path, truth: Path, tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "meta_expressions.json").write_text('{"videos": {}}')
    error = rvos("evaluate", truth, "--data", tmp_path / "both").error
    assert "several splits (train, valid)" in error
    assert error.endswith(str(tmp_path / "both" / "valid"))


@pytest.mark.parametrize("command", ["evaluate", "make-data"])
def test_help_fits_80_columns_and_imports_nothing_heavy(
    process: Callable, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = process(command, "--help", python=("-X", "importtime"))
    assert result.code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout
    imported = {
        line.rsplit("|", 1)[1].strip().split(".")[0]
        for line in result.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert not imported & {"torch", "onnxruntime", "av", "scipy", "numpy"}
