"""Read MeViS v1 and v2 and Moving Sprites: records, laziness, and error messages."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets import read_mevis
from rvos_deploy.datasets.moving_sprites import (
    SplitSpec,
    WorldConfig,
    make_video,
    render,
    write_mevis,
)
from rvos_deploy.errors import InputError
from rvos_deploy.rle import encode

Edit = Callable[[Path, Callable[[Any], None]], None]


def box(top: int, left: int) -> np.ndarray:
    mask = np.zeros((6, 8), bool)
    mask[top : top + 2, left : left + 2] = True
    return mask


def test_records(mevis: Path) -> None:
    split = read_mevis(mevis)
    assert split.meta == mevis / "meta_expressions.json"
    assert split.has_truth
    (video,) = split.videos
    assert video.name == "abc"
    assert [path.name for path in video.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert video.size == (6, 8)
    assert [(e.id, e.text, e.kind, e.object_ids) for e in video.expressions] == [
        ("0", "moves right", None, (0,)),
        ("1", "all but one", None, (0, 2)),
        ("2", "nothing", None, ()),
    ]
    assert video.image(2).shape == (6, 8, 3)
    assert abs(int(video.image(2)[0, 0, 0]) - 80) <= 2


def test_masks_follow_the_sorted_frames(mevis: Path) -> None:
    (video,) = read_mevis(mevis).videos
    moves, but_one, nothing = video.expressions
    assert np.array_equal(video.union_masks(moves), [box(0, 2 * t) for t in range(3)])
    both = [box(0, 0), box(0, 2), box(0, 4) | box(2, 6)]
    assert np.array_equal(video.union_masks(but_one), both)
    assert np.array_equal(video.union_masks(but_one, [2]), both[2:])
    assert video.union_masks(nothing).shape == (3, 6, 8)
    assert not video.union_masks(nothing).any()


def test_object_masks_are_of_all_objects(mevis: Path) -> None:
    (video,) = read_mevis(mevis).videos
    assert video.annotation is not None
    assert video.annotation.objects == (7, 8, 9)
    masks = video.object_masks([2, 0])
    assert masks.shape == (3, 2, 6, 8)
    wanted = [[box(0, 4), box(0, 0)], [box(4, 0)] * 2, [box(2, 6), np.zeros((6, 8))]]
    assert np.array_equal(masks, wanted)
    assert [video.referred(e).tolist() for e in video.expressions] == [
        [True, False, False],
        [True, False, True],
        [False, False, False],
    ]


def test_a_part_is_pickled_alone(mevis: Path) -> None:
    (video,) = read_mevis(mevis).videos
    part = pickle.loads(pickle.dumps(video.part(1, 3)))
    assert [path.stem for path in part.frames] == ["00001", "00002"]
    whole = video.union_masks(video.expressions[1])
    assert np.array_equal(part.union_masks(part.expressions[1]), whole[1:])
    assert len(part.annotation.runs[7]) == 2


def test_masks_equal_pycocotools(mevis: Path, edit: Edit) -> None:
    cocomask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    masks = rng.random((3, 6, 8)) < 0.4
    coded = [cocomask.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]
    rows = [{"size": c["size"], "counts": c["counts"].decode()} for c in coded]
    edit(mevis / "mask_dict.json", lambda content: content.update({"7": rows}))
    (video,) = read_mevis(mevis).videos
    assert np.array_equal(video.union_masks(video.expressions[0]), masks[[0, 2, 1]])


def test_nothing_is_decoded_to_make_the_index(mevis: Path) -> None:
    for path in mevis.glob("JPEGImages/abc/*.jpg"):
        path.write_bytes(b"no image")
    (video,) = read_mevis(mevis).videos
    with pytest.raises(InputError, match=r"00000\.jpg is not an image"):
        video.union_masks(video.expressions[0])


def test_version_2_goes_first_and_the_file_can_be_named(mevis: Path, edit: Edit) -> None:
    v1, v2 = mevis / "meta_expressions.json", mevis / "meta_expressions_v2.json"
    v2.write_bytes(v1.read_bytes())
    edit(v1, lambda content: content["videos"]["abc"]["expressions"].pop("2"))
    assert len(read_mevis(mevis).videos[0].expressions) == 3
    assert len(read_mevis(v1).videos[0].expressions) == 2
    assert len(read_mevis(mevis.parent).videos[0].expressions) == 3


def test_a_split_without_ground_truth(mevis: Path, edit: Edit) -> None:
    (mevis / "mask_dict.json").unlink()

    def strip(content: Any) -> None:
        for expression in content["videos"]["abc"]["expressions"].values():
            del expression["obj_id"], expression["anno_id"]
        del content["videos"]["abc"]["objects"]

    edit(mevis / "meta_expressions.json", strip)
    split = read_mevis(mevis)
    assert not split.has_truth
    (video,) = split.videos
    assert video.expressions[0].object_ids is None
    with pytest.raises(InputError, match="abc is published without ground truth"):
        video.union_masks(video.expressions[0])


def test_moving_sprites(tmp_path: Path) -> None:
    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    folder = write_mevis(tmp_path / "d", SplitSpec(seed=1, split="train", videos=2, config=config))
    for index, video in enumerate(read_mevis(folder).videos):
        source = make_video(1, "train", index, config)
        truth = render(source)[1]  # [T, K, H, W]
        assert np.array_equal(video.object_masks(), truth.swapaxes(0, 1))
        assert [e.kind for e in video.expressions] == [e.kind for e in source.expressions]
        for expression, made in zip(video.expressions, source.expressions, strict=True):
            assert expression.object_ids == made.targets
            union = truth[:, list(made.targets)].any(axis=1)
            assert np.array_equal(video.union_masks(expression), union)


def _set(*path: Any) -> Callable[[Any], None]:
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


EXPRESSIONS = ("videos", "abc", "expressions")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "meta_expressions.json",
            _set(*EXPRESSIONS, "1", "anno_id", [7]),
            "videos/abc/expressions/1: obj_id has 2 entries and anno_id 1",
        ),
        (
            "meta_expressions.json",
            _set(*EXPRESSIONS, "0", "anno_id", [70]),
            "videos/abc/expressions/0/anno_id/0: .*mask_dict.json has no anno_id 70",
        ),
        (
            "meta_expressions.json",
            _set(*EXPRESSIONS, "0", "anno_id", ["seven"]),
            'expressions/0/anno_id/0: expected a whole number, found "seven"',
        ),
        (
            "meta_expressions.json",
            _set(*EXPRESSIONS, "0", {"obj_id": [0], "anno_id": [7]}),
            "videos/abc/expressions/0: 'exp' is missing",
        ),
        (
            "meta_expressions.json",
            _set(*EXPRESSIONS, "2", {"exp": "a dog", "obj_id": "1"}),
            "expressions/2: obj_id without anno_id, so this is not MeViS",
        ),
        (
            "meta_expressions.json",
            _set(*EXPRESSIONS, "0", "exp", "  "),
            "videos/abc/expressions/0/exp: the expression is blank",
        ),
        (
            "meta_expressions.json",
            _set("videos", "abc", {"frames": ["00000"]}),
            "videos/abc: 'expressions' is missing",
        ),
        (
            "meta_expressions.json",
            _set("videos", "abc", "frames", ["00000", "00001", "00003"]),
            "videos/abc/frames: the file .*00003.jpg is missing",
        ),
        (
            "meta_expressions.json",
            _set("videos", "abc", "frames", []),
            "videos/abc/frames: a video needs at least one frame",
        ),
        (
            "meta_expressions.json",
            _set("videos", "abc", "frames", ["00000", "00000", "00001"]),
            "videos/abc/frames: the frame 00000 is listed twice",
        ),
        (
            "meta_expressions.json",
            _set("videos", "abc", "frames", "00000"),
            'videos/abc/frames: expected a list, found "00000"',
        ),
        ("meta_expressions.json", _set("videos", []), "videos: expected an object"),
        ("mask_dict.json", _set("9", [None]), r"9: 1 masks, but the video has 3 frames"),
        ("mask_dict.json", _set("9", [None, 3, None]), "9/1: expected an object, found 3"),
        ("mask_dict.json", _set("9", "x"), "9: expected a list"),
    ],
)
def test_what_is_wrong_is_named(
    mevis: Path, edit: Edit, file: str, change: Callable[[Any], None], said: str
) -> None:
    edit(mevis / file, change)
    with pytest.raises(InputError, match=said) as caught:
        read_mevis(mevis)
    assert str(caught.value).startswith(str(mevis / file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        (dict(encode(np.zeros((8, 6), bool))), "the mask is 8x6, but the video's frames are 6x8"),
        ({"size": [6, 8], "counts": "01"}, "damaged mask"),
        ({"size": [6, 8]}, "counts must be a string"),
    ],
)
def test_a_wrong_mask_is_named_when_it_is_read(
    mevis: Path, edit: Edit, rle: dict[str, Any], said: str
) -> None:
    edit(mevis / "mask_dict.json", _set("8", [None, rle, None]))
    (video,) = read_mevis(mevis).videos
    video.union_masks(video.expressions[0])  # others are not touched
    with pytest.raises(InputError, match=said) as caught:
        video.object_masks()
    assert "mask_dict.json: 8: video abc, frame 00002" in str(caught.value)


def test_files_that_are_no_json_or_not_there(mevis: Path) -> None:
    (mevis / "mask_dict.json").write_text("{")
    with pytest.raises(InputError, match=r"mask_dict\.json is not valid JSON"):
        read_mevis(mevis)
    (mevis / "mask_dict.json").unlink()
    with pytest.raises(InputError, match=r"mask_dict\.json cannot be read: No such file"):
        read_mevis(mevis)


def test_frames_of_two_sizes(mevis: Path) -> None:
    Image.new("RGB", (4, 4)).save(mevis / "JPEGImages" / "abc" / "00001.jpg")
    (video,) = read_mevis(mevis).videos
    with pytest.raises(InputError, match=r"00001\.jpg is 4x4, but 00000\.jpg is 6x8"):
        video.image(1)


def test_a_damaged_frame(mevis: Path) -> None:
    path = mevis / "JPEGImages" / "abc" / "00001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    (video,) = read_mevis(mevis).videos
    with pytest.raises(InputError, match=r"00001\.jpg is damaged"):
        video.image(1)


def test_folders_that_are_no_split(mevis: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none does not exist; pass the folder of one split"):
        read_mevis(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds neither meta_expressions\.json nor"):
        read_mevis(tmp_path / "empty")
    other = mevis.parent / "train"
    other.mkdir()
    (other / "meta_expressions.json").write_text("{}")
    with pytest.raises(InputError, match=r"several splits \(train, valid_u\); pass one of them"):
        read_mevis(mevis.parent)


def test_readers_import_no_torch() -> None:
    code = "import sys, rvos_deploy.datasets as d; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
