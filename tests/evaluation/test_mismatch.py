"""Masks that are not where they are looked for: what is found there is said, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.errors import InputError
from rvos_deploy.evaluation.evaluate import evaluate
from rvos_deploy.evaluation.mismatch import unexpected_names

Mask = np.ndarray


def refused(predictions: Path, split: Path, protocol: str = "mevis") -> str:
    with pytest.raises(InputError) as caught:
        evaluate(predictions, split, protocol)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def renamed(predictions: Path, how: Callable[[Path], Path | None]) -> Path:
    for path in list(predictions.rglob("*.png")):
        if (target := how(path)) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return predictions


def test_frames_named_by_number(split: Path, predictions: Path) -> None:
    folder = renamed(predictions, lambda path: path.with_name(f"{int(path.stem)}.png"))
    assert refused(folder, split) == (
        f"{folder} holds no mask with an expected name: in {folder / 'one' / '0'} found 0.png, "
        "1.png, 2.png, needed 00000.png, 00001.png, 00002.png and 1 more; name the masks as the "
        "frames are named"
    )


def test_masks_that_are_jpegs(split: Path, predictions: Path) -> None:
    for path in predictions.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"))
        path.unlink()
    assert "write masks as PNG: JPEG changes their values" in refused(predictions, split)


def test_a_jpeg_under_the_name_of_a_png(split: Path, predictions: Path) -> None:
    path = predictions / "one" / "0" / "00001.png"
    with Image.open(path) as image:
        image.save(path, "JPEG")
    assert f"{path} is a JPEG image; write masks as PNG" in refused(predictions, split)


def test_expressions_named_otherwise(split: Path, predictions: Path) -> None:
    for video in predictions.iterdir():
        for number, folder in enumerate(sorted(video.iterdir())):
            folder.rename(video / f"exp{number}")
    assert "found exp0, exp1, exp2, needed 0, 1, 2; name the folders as" in refused(
        predictions, split
    )


def test_masks_in_the_folder_of_the_video(split: Path, predictions: Path) -> None:
    folder = renamed(predictions, lambda path: path.parents[1] / path.name)
    for path in list(folder.glob("*/*/")):
        if path.is_dir():
            path.rmdir()
    assert "each expression needs a folder of its own" in refused(folder, split)


def test_a_folder_too_high(split: Path, predictions: Path) -> None:
    server = predictions.parent / "unpacked" / "Annotations"
    shutil.copytree(predictions, server)
    assert f"they lie in {server}: pass that folder" in refused(server.parent, split)


def test_a_folder_too_low(split: Path, predictions: Path) -> None:
    said = f"{predictions / 'two'} is the folder of one video: pass {predictions}"
    assert said in refused(predictions / "two", split)
    assert said in refused(predictions / "two" / "5", split)


def test_what_is_no_folder_of_predictions(split: Path, predictions: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "z" / "masks"), "zip", predictions))
    assert "masks.zip is a zip file; unpack it; pass a bundle, or" in refused(archive, split)
    assert "unpack masks.zip; masks are expected in" in refused(archive.parent, split)
    assert "it looks like a data set: pass that with --data" in refused(split, split)
    (tmp_path / "empty").mkdir()
    assert "none of the 2 videos (found nothing); masks are expected" in refused(
        tmp_path / "empty", split
    )
    (tmp_path / "empty" / "backbone.onnx").touch()
    assert "a bundle, but has no manifest.json" in refused(tmp_path / "empty", split)
    assert "is not a folder" in refused(split / "mask_dict.json", split)


def test_every_layout_of_a_mask(split: Path, predictions: Path, make_box: Callable) -> None:
    """Palette, colours, 16 bit, 0 and 1: not 0 is inside, whatever the kind of PNG."""
    mask = make_box(4, 4).astype(np.uint8)
    palette = Image.fromarray(mask * 3)
    palette.putpalette([0, 0, 0, 90, 0, 0, 0, 90, 0, 0, 0, 90])
    kinds = {
        "0 and 1": Image.fromarray(mask),
        "16 bit": Image.fromarray(mask.astype(np.uint16) * 65535),
        "16 bit, low": Image.fromarray(mask.astype(np.uint16)),
        "palette": palette,
        "colours": Image.fromarray(np.stack([mask * 0, mask * 9, mask * 0], axis=2)),
        "with alpha": Image.fromarray(np.stack([mask * 255] * 3 + [mask * 0 + 255], axis=2)),
        "1 bit": Image.fromarray(mask * 255).convert("1"),
    }
    path = predictions / "two" / "0" / "00000.png"
    for kind, image in kinds.items():
        image.save(path)
        scores = {(s.video, s.expression): s.j for s in evaluate(predictions, split).scores}
        assert scores["two", "0"] == 1.0, kind


def test_strays_are_named_beside_what_is_missing(split: Path, predictions: Path) -> None:
    """Ids are 0, 5, 7; somebody numbered them 0, 1, 2, so one of them matches."""
    video = predictions / "two"
    (video / "5").rename(video / "1")
    (video / "7").rename(video / "2")
    found = evaluate(predictions, split)
    assert found.missing == ("one/0/00003.png", "two/5", "two/7")
    assert unexpected_names(predictions, found.split.videos, found.missing) == ["two/1", "two/2"]
    assert not unexpected_names(predictions, found.split.videos, found.missing[:1])


def test_another_protocol_than_the_data(split: Path, predictions: Path, ref_davis: Path) -> None:
    assert "a list of objects, as in MeViS; read it as MeViS" in refused(
        predictions, split, "ref-youtube-vos"
    )
    assert "so this is not MeViS; read it as Ref-YouTube-VOS" in refused(predictions, ref_davis)


def test_sets_that_cannot_be_scored_are_refused_before_predicting(ref_davis: Path) -> None:
    meta = ref_davis.parent / "meta_expressions" / "valid" / "meta_expressions.json"
    content = json.loads(meta.read_text())
    del content["videos"]["car"]["expressions"]["3"]
    meta.write_text(json.dumps(content))

    def never(video: object) -> list[Mask]:
        raise AssertionError

    with pytest.raises(InputError, match="every annotator must describe every object"):
        evaluate(never, ref_davis, "ref-davis")
