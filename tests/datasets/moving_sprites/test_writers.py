"""The written split and the sample video hold what the generator made."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rvos_deploy.datasets.moving_sprites import (
    SplitSpec,
    WorldConfig,
    make_video,
    render,
    sample_video,
    write_mevis,
)
from rvos_deploy.errors import InputError
from rvos_deploy.rle import decode

CONFIG = WorldConfig(height=96, width=160, frames=8, emoji=False)
COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("data") / "sprites" / "valid"
    calls: list[tuple[int, int]] = []
    path = write_mevis(
        target,
        SplitSpec(seed=9, split="valid", videos=COUNT, config=CONFIG),
        progress=lambda phase, done, total: calls.append((done, total)),
    )
    assert path == target
    assert calls == [(i + 1, COUNT) for i in range(COUNT)]
    return target


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_layout(folder: Path) -> None:
    v2 = _json(folder / "meta_expressions_v2.json")["videos"]
    v1 = _json(folder / "meta_expressions.json")["videos"]
    masks = _json(folder / "mask_dict.json")
    assert list(v1) == list(v2)
    assert len(v2) == COUNT
    annotations = []
    for index, (name, entry) in enumerate(v2.items()):
        video = make_video(9, "valid", index, CONFIG)
        assert name == video.name
        assert entry["vid_id"] == index
        assert entry["frames"] == [f"{t:05d}" for t in range(8)]
        files = sorted(p.name for p in (folder / "JPEGImages" / name).iterdir())
        assert files == [f"{t}.jpg" for t in entry["frames"]]
        own = {o["obj_id"]: o["anno_id"] for o in entry["objects"]}
        annotations += own.values()
        assert len(own) == len(video.objects)
        for key, said in entry["expressions"].items():
            wanted = video.expressions[int(key)]
            assert (said["exp"], said["kind"]) == (wanted.text, wanted.kind)
            assert said["obj_id"] == list(wanted.targets)
            assert said["anno_id"] == [own[k] for k in said["obj_id"]]
        kept = {k: e for k, e in entry["expressions"].items() if e["obj_id"]}
        assert v1[name]["expressions"] == kept
        truth = render(video)[1]
        for k, anno in own.items():
            for t, rle in enumerate(masks[str(anno)]):
                assert (rle is None) == (not truth[t, k].any())
                if rle is not None:
                    assert np.array_equal(decode(rle), truth[t, k])
    assert sorted(map(int, masks)) == sorted(annotations) == list(range(len(masks)))
    assert any(rle is None for rows in masks.values() for rle in rows)
    assert any(not e["obj_id"] for v in v2.values() for e in v["expressions"].values())
    assert _json(folder / "sprites.json")["world"]["emoji"] is False


def test_jpegs_show_the_frames(folder: Path) -> None:
    video = make_video(9, "valid", 0, CONFIG)
    frames = render(video)[0]
    image = np.asarray(Image.open(folder / "JPEGImages" / video.name / "00003.jpg"))
    assert image.shape == frames[3].shape
    assert np.abs(image.astype(int) - frames[3]).mean() < 4


def test_processes_do_not_change_the_result(folder: Path, tmp_path: Path) -> None:
    other = write_mevis(
        tmp_path / "two", SplitSpec(seed=9, split="valid", videos=COUNT, config=CONFIG), jobs=2
    )
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert (other / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "valid"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_mevis(target, SplitSpec(seed=1, split="valid", videos=1, config=CONFIG))
    with pytest.raises(InputError, match="is not a split of Moving Sprites"):
        write_mevis(
            target, SplitSpec(seed=1, split="valid", videos=1, config=CONFIG), overwrite=True
        )
    assert (target / "precious.txt").read_text() == "mine"
    (target / "precious.txt").unlink()
    for seed in (1, 2):
        write_mevis(
            target, SplitSpec(seed=seed, split="valid", videos=1, config=CONFIG), overwrite=True
        )
        assert f'"seed": {seed}' in (target / "sprites.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["valid"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    old = tmp_path / "valid"
    old.mkdir()

    def interrupt(phase: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mevis(
            old,
            SplitSpec(seed=1, split="valid", videos=3, config=CONFIG),
            overwrite=True,
            progress=interrupt,
        )
    assert [p.name for p in tmp_path.iterdir()] == ["valid"]
    assert not any(old.iterdir())


def test_no_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1, found 0"):
        write_mevis(tmp_path / "x", SplitSpec(seed=1, split="valid", videos=0))


def test_sample_video_decodes_to_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "sample.mp4"
    wanted = ("motion", "plural", "no_target")
    sample = sample_video(path, seed=3, frames=12, kinds=wanted, emoji=False)
    assert {e.kind for e in sample.expressions} >= set(wanted)
    frames, masks = render(sample.video)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(decoded) == 12
    assert np.abs(np.stack(decoded).astype(int) - frames).mean() < 6
    assert np.array_equal(sample.masks, masks)
    for e in sample.expressions:
        truth = sample.truth(e)
        assert truth.shape == (12, 128, 224)
        assert truth.any() == bool(e.targets)
    assert [p.name for p in tmp_path.iterdir()] == ["sample.mp4"]


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="even"):
        sample_video(tmp_path / "x.mp4", seed=1, size=(127, 224))
