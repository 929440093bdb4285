"""Protocols against scores worked out by hand, and against a plain form of the official code."""

from __future__ import annotations

import csv
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rvos_deploy.datasets import VideoRecord, read_mevis, read_ref_davis
from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.evaluate import ScoringOptions, evaluate
from rvos_deploy.evaluation.metrics import contour_accuracy, region_similarity
from rvos_deploy.evaluation.report import report, write_csv

Mask = NDArray[np.bool_]


def scores(evaluation: object) -> dict[str, tuple[float, float]]:
    return {f"{s.video}/{s.expression}": (s.j, s.f) for s in evaluation.scores}


def test_the_numbers(split: Path, predictions: Path) -> None:
    found = evaluate(predictions, split)
    by_name = scores(found)
    # Right, right, apart, missing.
    assert by_name["one/0"] == (0.5, 0.5)
    # Half of the union, the other half, all, nothing. A boundary map of two equal boxes: precision
    # 1, recall 1/2, so F = 2/3.
    assert by_name["one/1"] == pytest.approx((0.5, (2 / 3 + 2 / 3 + 1 + 0) / 4))
    # Full against empty: J = 0, but F = 1, as in DAVIS.
    assert by_name["one/2"] == (0.75, 1.0)
    # Right, and rightly empty where the object is not seen.
    assert by_name["two/0"] == (1.0, 1.0)
    assert by_name["two/5"] == (1.0, 1.0)
    # Empty is right in the two frames where it is not seen.
    assert by_name["two/7"] == (0.5, 0.5)

    result = report(found, {})
    j = (0.5 + 0.5 + 0.75 + 1 + 1 + 0.5) / 6
    f = (0.5 + 7 / 12 + 1 + 1 + 1 + 0.5) / 6
    assert (result["j"], result["f"]) == pytest.approx((j, f))
    assert result["j_and_f"] == pytest.approx((j + f) / 2)
    assert result["count"] == 6
    # One full frame makes it wrong, whatever F says.
    assert result["n_acc"] == 0.5
    # Only two/7 is predicted empty throughout.
    assert result["t_acc"] == 0.75
    assert set(result["by_kind"]) == {"motion", "no_target", "plural"}
    motion = {"j": 2 / 3, "f": 2 / 3, "j_and_f": 2 / 3, "count": 3}
    assert result["by_kind"]["motion"] == pytest.approx(motion)
    assert result["by_video"]["two"]["j"] == pytest.approx(2.5 / 3)
    assert result["with_target"]["count"] == 4
    assert result["with_target"]["j"] == pytest.approx(2.5 / 4)
    assert result["missing"] == ["one/0/00003.png"]
    one = next(r for r in result["by_expression"] if (r["video"], r["expression"]) == ("one", "0"))
    assert one["missing_frames"] == 1
    assert one["j_and_f"] == 0.5
    json.dumps(result, allow_nan=False)


def test_a_missing_prediction_of_no_target_is_not_right(split: Path, predictions: Path) -> None:
    for path in (predictions / "two" / "5").iterdir():
        path.unlink()
    found = evaluate(predictions, split)
    assert scores(found)["two/5"] == (0.0, 0.0)
    assert report(found, {})["n_acc"] == 0.0
    assert found.missing == ("one/0/00003.png", "two/5")


def test_n_acc_and_t_acc_of_what_is_missing(split: Path, predictions: Path) -> None:
    """What the module's docstring says of missing masks, line by line."""
    before = report(evaluate(predictions, split), {})
    assert (before["n_acc"], before["t_acc"]) == (0.5, 0.75)
    # No target, all masks empty but one, which is missing: J and F lose that frame, N-acc all.
    (predictions / "two" / "5" / "00002.png").unlink()
    found = evaluate(predictions, split)
    assert scores(found)["two/5"] == (0.75, 0.75)
    assert report(found, {})["n_acc"] == 0.0
    # A target, one mask with a pixel left of four: still right.
    for index in (0, 1, 3):
        (predictions / "one" / "1" / f"{index:05d}.png").unlink()
    assert report(evaluate(predictions, split), {})["t_acc"] == 0.75
    # The last one goes: nothing shows a pixel, as if all were empty.
    (predictions / "one" / "1" / "00002.png").unlink()
    assert report(evaluate(predictions, split), {})["t_acc"] == 0.5


def test_a_missing_video_counts_0_and_is_named(split: Path, predictions: Path) -> None:
    (predictions / "two").rename(predictions / "zwei")
    found = evaluate(predictions, split)
    assert found.missing == ("one/0/00003.png", "two")
    assert report(found, {})["by_video"]["two"]["j_and_f"] == 0.0
    assert report(found, {})["t_acc"] == 0.5


def test_many_processes_say_the_same(split: Path, predictions: Path, tmp_path: Path) -> None:
    alone = evaluate(predictions, split, submission=tmp_path / "1.zip")
    many = evaluate(
        predictions, split, options=ScoringOptions(jobs=2), submission=tmp_path / "2.zip"
    )
    assert alone.scores == many.scores
    assert alone.missing == many.missing
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_errors_come_through_from_processes(split: Path, predictions: Path) -> None:
    Image.new("L", (5, 4)).save(predictions / "two" / "5" / "00002.png")
    with pytest.raises(InputError, match=r"two/5/00002\.png is 4x5, the video is 32x48"):
        evaluate(predictions, split, options=ScoringOptions(jobs=2))


def test_long_videos_are_scored_in_parts(
    split: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(predictions, split)
    monkeypatch.setattr("rvos_deploy.evaluation.predictions.CHUNK", 3)
    steps: list[tuple[str, int, int | None]] = []
    parts = evaluate(
        predictions, split, options=ScoringOptions(progress=lambda *step: steps.append(step))
    )
    assert parts.scores == whole.scores
    assert steps == [("scores", done, 8) for done in (3, 4, 7, 8)]


def test_kinds_of_data_that_names_none(split: Path, predictions: Path) -> None:
    meta = split / "meta_expressions_v2.json"
    content = json.loads(meta.read_text())
    for video in content["videos"].values():
        for expression in video["expressions"].values():
            del expression["kind"]
    meta.write_text(json.dumps(content))
    kinds = report(evaluate(predictions, split), {})["by_kind"]
    assert {name: means["count"] for name, means in kinds.items()} == {
        "no_target": 2,
        "one_target": 3,
        "several_targets": 1,
    }


def test_any_value_but_0_is_inside(
    split: Path, predictions: Path, make_box: Callable, save_mask: Callable
) -> None:
    path = predictions / "two" / "0" / "00000.png"
    for value in (1, 255):
        save_mask(path, make_box(4, 4), value)
        assert scores(evaluate(predictions, split))["two/0"] == (1.0, 1.0)
    for mode in ("RGBA", "RGB", "P", "1"):
        Image.fromarray(make_box(4, 4).astype(np.uint8) * 255).convert(mode).save(path)
        assert scores(evaluate(predictions, split))["two/0"] == (1.0, 1.0), mode


@pytest.mark.parametrize("jobs", [1, 2])
def test_submission_holds_every_mask(
    split: Path, predictions: Path, tmp_path: Path, jobs: int
) -> None:
    out = tmp_path / "new" / "s.zip"
    evaluate(predictions, split, options=ScoringOptions(jobs=jobs), submission=out)
    with zipfile.ZipFile(out) as archive:
        assert sorted(archive.namelist()) == sorted(
            str(path.relative_to(predictions)) for path in predictions.rglob("*.png")
        )
        with archive.open("one/1/00002.png") as file, Image.open(file) as image:
            assert image.mode == "L"
            with Image.open(predictions / "one" / "1" / "00002.png") as source:
                assert np.array_equal(np.asarray(image), np.asarray(source))
    assert [path.name for path in out.parent.iterdir()] == ["s.zip"]


def test_a_failed_submission_leaves_nothing(split: Path, predictions: Path, tmp_path: Path) -> None:
    (predictions / "two" / "5" / "00002.png").write_bytes(b"")
    out = tmp_path / "s"
    with pytest.raises(InputError, match=r"two/5/00002\.png is damaged"):
        evaluate(predictions, split, submission=out / "s.zip")
    assert not out.exists()


def test_without_ground_truth_only_a_submission(
    split: Path, predictions: Path, tmp_path: Path
) -> None:
    meta = split / "meta_expressions_v2.json"
    content = json.loads(meta.read_text())
    for video in content["videos"].values():
        for expression in video["expressions"].values():
            del expression["obj_id"], expression["anno_id"]
    meta.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no ground truth, so nothing can be scored here"):
        evaluate(predictions, split)
    found = evaluate(predictions, split, submission=tmp_path / "s.zip")
    assert found.scores == ()
    assert found.missing == ("one/0/00003.png",)
    result = report(found, {})
    assert (result["j"], result["n_acc"], result["t_acc"], result["count"]) == (None, None, None, 0)
    assert len(zipfile.ZipFile(tmp_path / "s.zip").namelist()) == 23


@pytest.mark.parametrize("chunk", [3, 16])
def test_masks_of_a_function(
    split: Path, predictions: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("rvos_deploy.evaluation.predictions.CHUNK", chunk)
    stored = evaluate(predictions, split)

    def predict(video: VideoRecord) -> Iterator[Mask]:
        for frame in video.frames:
            files = [
                predictions / video.name / e.id / f"{frame.stem}.png" for e in video.expressions
            ]
            empty = np.zeros(video.size, bool)
            yield np.stack([np.asarray(Image.open(p)) > 0 if p.is_file() else empty for p in files])

    computed = evaluate(predict, read_mevis(split))
    assert computed.missing == ()
    # one/0 is empty in its last frame instead of missing: 0 all the same.
    assert scores(computed) == scores(stored)


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (lambda video: [np.zeros((1, 32, 48), bool)] * 4, r"shape \[1, 32, 48\] were predicted"),
        (lambda video: [np.zeros((3, 32, 48), bool)] * 3, "has 4 frames, but 3 have masks"),
    ],
)
def test_a_function_that_gives_something_else(split: Path, masks: Callable, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(masks, split)


def test_csv_holds_what_json_holds(split: Path, predictions: Path, tmp_path: Path) -> None:
    result = report(evaluate(predictions, split), {})
    write_csv(tmp_path / "a" / "e.csv", result)
    with (tmp_path / "a" / "e.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels = [row["level"] for row in rows]
    assert levels == ["overall"] + ["kind"] * 3 + ["video"] * 2 + ["expression"] * 6
    assert float(rows[0]["j_and_f"]) == result["j_and_f"]
    kinds = {row["kind"]: float(row["f"]) for row in rows if row["level"] == "kind"}
    assert kinds == {name: means["f"] for name, means in result["by_kind"].items()}
    one = next(
        r for r in rows if (r["level"], r["video"], r["expression"]) == ("expression", "one", "1")
    )
    assert (one["kind"], one["text"], float(one["j"])) == ("plural", "one 1", 0.5)


def write_davis(root: Path, masks: dict[str, Mask], save_mask: Callable) -> Path:
    for expression, mask in masks.items():
        for name in ("00000", "00001"):
            save_mask(root / "car" / expression / f"{name}.png", mask)
    return root


def test_ref_davis_by_hand(
    ref_davis: Path, tmp_path: Path, make_box: Callable, save_mask: Callable
) -> None:
    first, second = make_box(2, 2), make_box(2, 20)
    # Expressions 0 and 2 are the first annotator's, 1 and 3 the second's, whose masks are swapped:
    # the assignment of the unsupervised protocol forgives that.
    said = {"0": first, "2": second, "1": second, "3": first}
    found = evaluate(write_davis(tmp_path / "p", said, save_mask), ref_davis, "ref-davis")
    assert [(s.annotator, s.object_id, s.expression, s.j, s.f) for s in found.scores] == [
        (0, 1, "0", 1.0, 1.0),
        (0, 2, "2", 1.0, 1.0),
        (0, 3, None, 0.5, 0.5),  # described by nobody, seen in one frame of two
        (1, 1, "1", 1.0, 1.0),
        (1, 2, "3", 1.0, 1.0),
        (1, 3, None, 0.5, 0.5),
    ]
    result = report(found, {})
    assert result["j_and_f"] == pytest.approx(2.5 / 3)
    assert {name: m["j_and_f"] for name, m in result["by_annotator"].items()} == pytest.approx(
        {"0": 2.5 / 3, "1": 2.5 / 3}
    )
    assert (result["by_kind"], result["n_acc"], result["t_acc"]) == ({}, None, None)


def plain_ref_davis(video: VideoRecord, masks: dict[str, list[Mask]]) -> tuple[float, float]:
    """Every assignment tried, every pair compared alone; the mean over objects, then annotators."""
    truths = [[video.annotation.indices(t) == k for t in range(2)] for k in (1, 2, 3)]
    means = []
    for chosen in (("0", "2"), ("1", "3")):
        proposals = [masks[key] for key in chosen] + [[np.zeros(video.size, bool)] * 2]
        best = (-1.0, [])
        for order in itertools.permutations(proposals):
            pairs = [
                (
                    np.mean([region_similarity(p, t) for p, t in zip(line, truth, strict=True)]),
                    np.mean([contour_accuracy(p, t) for p, t in zip(line, truth, strict=True)]),
                )
                for line, truth in zip(order, truths, strict=True)
            ]
            best = max(best, (float(np.sum(pairs)), pairs), key=lambda pair: pair[0])
        means.append(np.mean(best[1], axis=0))
    j, f = np.mean(means, axis=0)
    return float(j), float(f)


# In 8, 88 and 123 the assignment that is best by J alone is not the best by J&F.
@pytest.mark.parametrize("seed", [0, 8, 88, 123])
def test_ref_davis_equals_a_plain_form(
    ref_davis: Path, tmp_path: Path, save_mask: Callable, make_box: Callable, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    masks: dict[str, list[Mask]] = {}
    for expression in "0123":
        masks[expression] = []
        for name in ("00000", "00001"):
            top, left = rng.choice([2, 3, 20]), rng.choice([2, 5, 20, 30])
            masks[expression].append(make_box(top, left, *rng.integers(5, 10, 2)))
            save_mask(tmp_path / "p" / "car" / expression / f"{name}.png", masks[expression][-1])
    (video,) = read_ref_davis(ref_davis).videos
    result = report(evaluate(tmp_path / "p", ref_davis, "ref-davis"), {})
    assert (result["j"], result["f"]) == pytest.approx(plain_ref_davis(video, masks), abs=1e-12)
    assert 0.05 < result["j"] < 0.95


def test_ref_davis_refuses_sets_of_unequal_size(ref_davis: Path, tmp_path: Path) -> None:
    meta = ref_davis.parent / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(meta.read_text())
    del content["videos"]["car"]["expressions"]["3"]
    meta.write_text(json.dumps(content))
    (tmp_path / "p" / "car").mkdir(parents=True)
    with pytest.raises(InputError, match=r"video car: every annotator .*object 1: 2, object 2: 1"):
        evaluate(tmp_path / "p", ref_davis, "ref-davis")


def test_ref_davis_takes_no_submission(ref_davis: Path, tmp_path: Path) -> None:
    (tmp_path / "p" / "car").mkdir(parents=True)
    with pytest.raises(InputError, match="no server takes submissions of ref-davis"):
        evaluate(tmp_path / "p", ref_davis, "ref-davis", submission=tmp_path / "s.zip")


def test_ref_youtube_vos(
    ref_davis: Path, tmp_path: Path, make_box: Callable, save_mask: Callable
) -> None:
    """The same layout: one object an expression, and a folder in the zip that its server wants."""
    first, second = make_box(2, 2), make_box(2, 20)
    said = {"0": first, "2": second, "1": second, "3": second}
    folder = write_davis(tmp_path / "p", said, save_mask)
    found = evaluate(folder, ref_davis, "ref-youtube-vos", submission=tmp_path / "s.zip")
    assert scores(found) == {
        "car/0": (1.0, 1.0),
        "car/1": (0.0, 0.0),
        "car/2": (1.0, 1.0),
        "car/3": (1.0, 1.0),
    }
    names = zipfile.ZipFile(tmp_path / "s.zip").namelist()
    assert "Annotations/car/0/00000.png" in names
    assert len(names) == 8


def test_wrong_folders_and_names(split: Path, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown protocol 'davis'; known: mevis, ref-youtube-vos"):
        evaluate(predictions, split, "davis")
    with pytest.raises(InputError, match=r"none of the 2 videos \(found predictions, split\)"):
        evaluate(predictions.parent, split)
    with pytest.raises(InputError, match="nowhere is not a folder; pass a bundle, or a folder"):
        evaluate(tmp_path / "nowhere", split)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(predictions, split, submission=tmp_path / "file" / "s.zip")
