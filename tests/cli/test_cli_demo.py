"""``demo``: what it writes, what it says, and that its scores are those of the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rvos_deploy import demo
from rvos_deploy.bundle.folder import find_bundle, packaged_bundles
from rvos_deploy.datasets.moving_sprites import WorldConfig, find_video, render
from rvos_deploy.evaluation.metrics import contour_accuracy, region_similarity


@pytest.fixture(scope="module")
def written(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rvos_deploy import load

    out = tmp_path_factory.mktemp("demo")
    with load(tiny_bundle) as segmenter:
        demo.run_demo(segmenter, out)
    return out


def test_scores_are_those_of_the_files(written: Path) -> None:
    metrics = json.loads((written / "metrics.json").read_text())
    video = find_video(
        demo.SEED, "valid", demo.KINDS, WorldConfig(height=256, width=448, emoji=False)
    )
    _, objects = render(video)
    assert {"schema", "command", "versions", "machine", "j", "f", "j_and_f"} <= set(metrics)
    assert {row["kind"] for row in metrics["by_expression"]} == set(demo.KINDS)
    means = []
    for number, row in enumerate(metrics["by_expression"]):
        (expression,) = [e for e in video.expressions if e.text == row["text"]]
        pairs = [
            (
                np.asarray(Image.open(written / "masks" / str(number) / f"{t:05d}.png")) > 0,
                objects[t, list(expression.targets)].any(axis=0),
            )
            for t in range(24)
        ]
        j = np.mean([region_similarity(*pair) for pair in pairs])
        f = np.mean([contour_accuracy(*pair) for pair in pairs])
        assert (row["j"], row["f"]) == pytest.approx((j, f), abs=1e-12)
        assert row["no_target"] == (not expression.targets)
        means.append((j + f) / 2)
    assert metrics["j_and_f"] == pytest.approx(np.mean(means))


def test_what_is_there_to_look_at(written: Path) -> None:
    count = len(json.loads((written / "metrics.json").read_text())["by_expression"])
    with Image.open(written / "picture.png") as picture:
        assert picture.size == (5 * 448, count * (256 + 32))
    for name in ("video.mp4", "overlay.mp4"):
        with av.open(str(written / name)) as container:
            assert len(list(container.decode(video=0))) == 24
    result = json.loads((written / "result.json").read_text())
    assert len(result["frames"]) == 24


def test_the_video_is_not_one_of_training(written: Path) -> None:
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["video"]["name"].startswith(f"sprites_valid_{demo.SEED}_")


def test_the_command_twice(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for _ in range(2):
        result = rvos("demo", "--bundle", tiny_bundle, "--out", out, "--seed", 3)
        assert (result.code, result.stderr) == (0, "")
        assert "no_target" in result.stdout
        assert f"24 frames at {result.stdout.split(' at ')[1].split()[0]} fps; in {out}" in (
            result.stdout
        )
    assert json.loads((out / "metrics.json").read_text())["video"]["seed"] == 3


def test_a_bundle_in_the_folder_goes_before_a_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, folder in packaged_bundles().items():
        assert find_bundle(name) == folder
        (tmp_path / name).mkdir()
        assert find_bundle(name) == folder, "a folder of that name need not be a bundle"
        (tmp_path / name / "manifest.json").touch()
        assert find_bundle(name) == Path(name)
    assert find_bundle("none") == Path("none")
