"""Read Ref-YouTube-VOS and converted Ref-DAVIS17: palette images, splits, error messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets import PaletteAnnotation, read_ref_davis, read_ref_youtube_vos
from rvos_deploy.errors import InputError

Edit = Callable[[Path, Callable[[Any], None]], None]
META = "meta_expressions/train/meta_expressions.json"


def box(top: int, left: int) -> np.ndarray:
    mask = np.zeros((6, 8), bool)
    mask[top : top + 2, left : left + 2] = True
    return mask


@pytest.mark.parametrize("place", ["train", "meta_expressions/train", META])
@pytest.mark.parametrize("read", [read_ref_youtube_vos, read_ref_davis])
def test_train(ref_youtube_vos: Path, place: str, read: Callable) -> None:
    split = read(ref_youtube_vos / place)
    assert split.has_truth
    (video,) = split.videos
    assert [path.name for path in video.frames] == ["00000.jpg", "00005.jpg"]
    assert [(e.id, e.text, e.object_ids) for e in video.expressions] == [
        ("0", "a dog", (2,)),
        ("1", "a cat", (1,)),
    ]
    dog, cat = video.expressions
    assert np.array_equal(video.union_masks(dog), [box(4, 4)] * 2)
    assert np.array_equal(video.union_masks(cat), [box(0, 0), box(0, 1)])
    assert np.array_equal(video.part(1, 2).union_masks(cat), [box(0, 1)])
    assert video.object_masks().shape == (2, 2, 6, 8)
    assert video.referred(dog).tolist() == [False, True]
    assert isinstance(video.annotation, PaletteAnnotation)
    assert video.annotation.indices(0).max() == 3  # 255 is void


def test_meta_json_tells_all_objects(ref_youtube_vos: Path, edit: Edit) -> None:
    meta = ref_youtube_vos / "train" / "meta.json"
    objects = {str(k): {"category": "dog"} for k in (1, 2, 3)}
    meta.write_text(json.dumps({"videos": {"t1": {"objects": objects}}}))
    (video,) = read_ref_youtube_vos(ref_youtube_vos / "train").videos
    masks = video.object_masks()
    assert np.array_equal(masks[2], [box(2, 6)] * 2)
    assert video.referred(video.expressions[0]).tolist() == [False, True, False]
    edit(meta, lambda content: content["videos"]["t1"]["objects"].pop("2"))
    with pytest.raises(InputError, match=r"meta\.json: videos/t1/objects: has no object 2"):
        read_ref_youtube_vos(ref_youtube_vos / "train")


def test_valid_leaves_out_the_test_videos(ref_youtube_vos: Path) -> None:
    split = read_ref_youtube_vos(ref_youtube_vos / "valid")
    assert [video.name for video in split.videos] == ["v1"]
    assert not split.has_truth
    (ref_youtube_vos / "meta_expressions" / "test" / "meta_expressions.json").unlink()
    split = read_ref_youtube_vos(ref_youtube_vos / "valid")
    assert [video.name for video in split.videos] == ["v1", "v2"]


def test_the_root_is_not_a_split(ref_youtube_vos: Path) -> None:
    with pytest.raises(InputError, match=r"several splits \(train, valid\)"):
        read_ref_youtube_vos(ref_youtube_vos)


def test_what_is_wrong_is_named(ref_youtube_vos: Path, edit: Edit) -> None:
    annotation = ref_youtube_vos / "train" / "Annotations" / "t1" / "00005.png"
    (video,) = read_ref_youtube_vos(ref_youtube_vos / "train").videos
    Image.new("RGB", (8, 6)).save(annotation)
    with pytest.raises(InputError, match=r"00005\.png is an image of mode RGB"):
        video.object_masks()
    Image.new("P", (6, 8)).save(annotation)
    with pytest.raises(InputError, match=r"00005\.png is 8x6, but the video's frames are 6x8"):
        video.object_masks()
    annotation.write_bytes(b"")
    with pytest.raises(InputError, match=r"00005\.png is damaged"):
        video.object_masks()
    annotation.unlink()
    with pytest.raises(InputError, match=r"videos/t1/frames: the file .*00005\.png is missing"):
        read_ref_youtube_vos(ref_youtube_vos / "train")
    expressions = ref_youtube_vos / META
    edit(expressions, lambda c: c["videos"]["t1"]["expressions"]["0"].pop("obj_id"))
    with pytest.raises(InputError, match=r"videos/t1/expressions: some expressions have an obj_id"):
        read_ref_youtube_vos(ref_youtube_vos / "train")


def test_mevis_is_told_apart(ref_youtube_vos: Path, edit: Edit) -> None:
    listed = ref_youtube_vos / META
    edit(listed, lambda c: c["videos"]["t1"]["expressions"]["1"].update(obj_id=[1, 2]))
    with pytest.raises(InputError, match="expressions/1/obj_id: a list of objects, as in MeViS"):
        read_ref_davis(ref_youtube_vos / "train")
