"""``evaluate --sweep-threshold``, and what ``evaluate`` says of overlaps and missing masks."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.bundle.folder import open_bundle, packaged_bundles
from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis

SMALL = ("--size", "64x96", "--jobs", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    root = tmp_path_factory.mktemp("sprites")
    write_mevis(root / "valid", SplitSpec(seed=4, split="valid", videos=1, config=config))
    return root


@pytest.fixture
def ref_davis(tmp_path: Path) -> Path:
    """One video of two frames, two objects, one annotator."""
    root = tmp_path / "ref-davis"
    rng = np.random.default_rng(0)
    indices = np.zeros((32, 48), np.uint8)
    indices[4:20, 4:20], indices[10:30, 24:40] = 1, 2
    palette = Image.fromarray(indices, "L")
    palette.putpalette([value for i in range(256) for value in (i, i, 255 - i)])
    names = ("00000", "00001")
    for folder in ("JPEGImages", "Annotations"):
        (root / "valid" / folder / "car").mkdir(parents=True)
    for name in names:
        image = Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8))
        image.save(root / "valid" / "JPEGImages" / "car" / f"{name}.jpg")
        palette.save(root / "valid" / "Annotations" / "car" / f"{name}.png")
    said = {"0": {"exp": "a car", "obj_id": "1"}, "1": {"exp": "a dog", "obj_id": "2"}}
    meta = root / "meta_expressions" / "valid" / "meta_expressions.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"videos": {"car": {"expressions": said, "frames": names}}}))
    return root / "valid"


def test_a_sweep_and_the_command_that_it_prints(
    rvos: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "my bundle"
    shutil.copytree(packaged_bundles()["tiny"], bundle)
    files = [tmp_path / "s.json", tmp_path / "s.csv"]
    result = rvos(
        "evaluate", bundle, "--data", data, "--sweep-threshold", "--lookahead", 1, *SMALL,
        "--sweep-at", "0.3,0.9", "--json", files[0], "--csv", files[1],
    )  # fmt: skip
    assert (result.code, result.stderr) == (0, "")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0].split() == ["offline", "online"]
    assert lines[1].split() == ["threshold", *["J&F", "N-acc", "T-acc"] * 2]
    assert [line.split()[0] for line in lines[2:5]] == ["0.30", "0.60", "0.90"]
    assert "own offline" in lines[3]
    assert "one pass" in lines[5]
    assert lines[6] == "online: lookahead 1, memory 64, anchors 0; offline: all frames"
    assert lines[7] == "fallback none (if no query passes, the mask is empty)"

    found = json.loads(files[0].read_text())
    assert {"schema", "command", "versions", "machine", "protocol", "data"} <= set(found)
    with files[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    best = {}
    for number, mode in enumerate(("offline", "online")):
        of_mode = found["modes"][mode]
        assert (of_mode["own"], of_mode["settings"]["mode"]) == (0.6, mode)
        best[mode] = max(of_mode["rows"], key=lambda row: row["j_and_f"])
        assert of_mode["best"] == best[mode]["threshold"]
        assert f"best {mode} {of_mode['best']}: J&F {best[mode]['j_and_f']:.4f} (" in result.stdout
        in_csv = [row for row in table if row["mode"] == mode]
        for row, line, printed in zip(of_mode["rows"], in_csv, lines[2:5], strict=True):
            values = [row[key] for key in ("j_and_f", "n_acc", "t_acc")]
            assert [float(line[key]) for key in ("j_and_f", "n_acc", "t_acc")] == values
            assert printed.split()[1 + 3 * number :][:3] == [f"{value:.4f}" for value in values]
    assert [row["threshold"] for row in table if row["best"] == "1"] == [
        str(row["threshold"]) for row in best.values()
    ]

    assert "on videos whose scores you do not report" in lines[-2]
    program, *arguments = shlex.split(lines[-1])
    assert program == "rvos-deploy"
    assert rvos(*arguments).code == 0
    written = open_bundle(bundle)
    assert {mode: written.threshold(mode) for mode in best} == {
        mode: row["threshold"] for mode, row in best.items()
    }


def test_a_packaged_bundle_is_copied_before_it_is_changed(
    rvos: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("evaluate", "tiny", "--data", data, "--sweep-threshold", "--sweep-at", "0.3")
    copy, change = rvos(*arguments, *SMALL).stdout.splitlines()[-2:]
    program, *paths = shlex.split(copy)
    assert (program, paths[0], len(paths)) == ("cp", "-r", 3)
    shutil.copytree(*paths[1:])
    assert rvos(*shlex.split(change)[1:]).code == 0


def test_refusals(rvos: Callable, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    sweep = ("evaluate", tiny_bundle, "--data", data, "--sweep-threshold")
    cases = {
        (*sweep, "--submission", tmp_path / "s.zip"): "--submission has no meaning with --sweep",
        (*sweep, "--mode", "online"): "--mode has no meaning with --sweep-threshold",
        (*sweep, "--threshold", 0.5): "list them with --sweep-at",
        (*sweep, "--sweep-at", "0.2;0.3"): "--sweep-at '0.2;0.3' is not a list of scores in 0..1",
        (*sweep, "--sweep-at", "0.2,nan"): "is not a list of scores in 0..1",
        (*sweep, "--sweep-at", "2"): "is not a list of scores in 0..1",
        (*sweep, "--overlaps", "argmax"): "overlaps have no meaning in mevis",
        (*sweep[:-1], "--overlaps", "argmax"): "overlaps have no meaning in mevis",
        (*sweep[:-1], "--sweep-at", "0.2"): "add --sweep-threshold",
        ("evaluate", tmp_path, *sweep[2:]): "--sweep-threshold has no meaning for existing masks",
        ("evaluate", tmp_path, "--data", data, "--overlaps", "argmax"): "--overlaps has no meaning",
    }
    for arguments, said in cases.items():
        result = rvos(*arguments)
        assert result.code == 2, arguments
        assert said in result.error
    assert not list(tmp_path.iterdir())


def test_overlaps_of_a_bundle_and_of_a_folder(
    rvos: Callable, tiny_bundle: Path, ref_davis: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    arguments = ("--data", ref_davis, "--protocol", "ref-davis", "--json", file)
    results = {}
    for overlaps in ((), ("--overlaps", "keep")):
        made = rvos("evaluate", tiny_bundle, *arguments, *SMALL, "--threshold", 0, *overlaps)
        assert (made.code, made.stderr) == (0, "")
        found = json.loads(file.read_text())
        results[found["settings"]["overlaps"]] = found["j_and_f"]
        done = "kept (published: argmax of mask logits)" if overlaps else "argmax of mask logits,"
        assert f"overlaps of an annotator's objects: {done}" in made.stdout
    assert set(results) == {"argmax", "keep"}
    assert results["argmax"] != results["keep"]

    for expression in ("0", "1"):
        for name in ("00000", "00001"):
            path = tmp_path / "p" / "car" / expression / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (48, 32), 255).save(path)
    folder = rvos("evaluate", tmp_path / "p", *arguments, "--jobs", 1)
    assert "kept (published: argmax of mask logits, which a folder of masks does" in folder.stdout
    assert json.loads(file.read_text())["settings"]["overlaps"] == "keep"

    swept = rvos(
        "evaluate", tiny_bundle, *arguments[:4], *SMALL, "--sweep-threshold", "--sweep-at", "0,1"
    )
    assert (swept.code, swept.stderr) == (0, "")
    assert "N-acc" not in swept.stdout
    assert "fallback top1 (if no query passes, the mask is the best query's" in swept.stdout
    assert "overlaps of an annotator's objects: argmax of mask logits, as published" in swept.stdout


def test_missing_masks_of_no_target_are_not_right(
    rvos: Callable, data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "p"
    (video,) = read_mevis(data).videos
    nothing = next(e for e in video.expressions if not e.targets)
    for expression in video.expressions:
        folder = root / video.name / expression.id
        folder.mkdir(parents=True)
        for path, mask in zip(video.frames, video.union_masks(expression), strict=True):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{path.stem}.png")
    shutil.rmtree(root / video.name / nothing.id)
    result = rvos("evaluate", root, "--data", data, "--jobs", 1)
    assert result.stderr == (
        f"warning: 1 of {len(video.expressions)} expressions has no masks ({video.name}/"
        f"{nothing.id}) and count 0; N-acc counts empty masks, not missing ones\n"
    )
    lacking = sum(not e.targets for e in video.expressions)
    assert f"N-acc {1 - 1 / lacking:.4f} of {lacking} without a target" in result.stdout


def test_help_says_what_missing_masks_count(rvos: Callable) -> None:
    shown = " ".join(rvos("evaluate", "--help").stdout.split())
    assert "J and F are 0 in its frame, even if the ground truth is empty." in shown
    assert "N-acc: an expression without a target needs all its masks, and all of them" in shown
