"""Test clips: a number decides the clip, masks fit the sentence, mirroring includes the text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rvos_deploy.datasets import DataSplit, read_mevis
from rvos_deploy.datasets.moving_sprites import (
    SplitSpec,
    WorldConfig,
    make_video,
    render,
    write_mevis,
)
from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import FrameGeometry, resize_frame
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.training.augmentation import Pictures, crop, mirror, mirror_text, resize
from rvos_deploy.training.clips import (
    Clip,
    Clips,
    batches,
    check_sizes,
    collate,
    frame_indices,
    part_of_step,
)
from rvos_deploy.training.recipe import Augmentation, Recipe, Stage
from rvos_deploy.training.recipe_file import read_recipe

WORLD = WorldConfig(height=64, width=96, frames=8, objects=(2, 4), expressions=(1, 4), emoji=False)
STAGE = Stage("joint", steps=3, batch=4, length=3, learning_rate=1e-3, per_video=2)
RECIPE = Recipe(preset("tiny"), "sprites", (STAGE,), seed=5, sprites=WORLD)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> DataSplit:
    folder = tmp_path_factory.mktemp("data") / "train"
    write_mevis(folder, SplitSpec(seed=3, split="train", videos=2, config=WORLD))
    return read_mevis(folder)


def folder_recipe(**changes: object) -> Recipe:
    settings = Augmentation(short_sides=(64,), long_side=96, crop=0.0, flip=0.0)
    return replace(RECIPE, data="mevis", augment=replace(settings, **changes))


def same(one: object, other: object) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)  # type: ignore[call-overload]
    )


def frames_by_age(clip: Clip) -> list[list[int]]:
    """Return the frames of the video that the ages of a clip permit."""
    starts = range(int(clip.ages[0]), WORLD.frames)
    return [(newest - clip.ages).tolist() for newest in starts]


def test_a_sprite_clip_depends_only_on_its_number() -> None:
    clips = Clips(RECIPE, STAGE)
    first = [clips[i] for i in (3, 7)]
    again = [Clips(RECIPE, STAGE)[i] for i in (7, 3)][::-1]
    assert all(map(same, first, again))
    assert not torch.equal(first[0].frames, first[1].frames)
    assert not torch.equal(clips[3].frames, Clips(replace(RECIPE, seed=6), STAGE)[3].frames)


@pytest.mark.parametrize("number", range(6))
def test_a_sprite_clip_has_the_masks_of_its_expression(number: int) -> None:
    clip = Clips(RECIPE, STAGE)[number]
    video = make_video(RECIPE.seed, "train", number // STAGE.per_video, WORLD)
    rendered = (render(video, indices) for indices in frames_by_age(clip))
    masks = next(masks for frames, masks in rendered if np.array_equal(frames, clip.frames))
    meant = {e.targets for e in video.expressions if e.text == clip.text}
    assert tuple(clip.referred.nonzero().flatten().tolist()) in meant
    np.testing.assert_array_equal(clip.masks, masks.swapaxes(0, 1))
    ids = clip.token_ids
    assert (ids[0], ids[-1]) == (49406, 49407)


def test_clips_of_one_video_use_its_expressions_in_turn() -> None:
    clips = Clips(RECIPE, replace(STAGE, per_video=4))
    video = make_video(RECIPE.seed, "train", 0, WORLD)
    texts = {clips[i].text for i in range(4)}
    assert len(texts) == min(4, len({e.text for e in video.expressions}))


def test_kinds_of_expressions_can_be_chosen() -> None:
    stage = replace(STAGE, kinds=("motion",), per_video=1)
    for number in range(4):
        video = make_video(RECIPE.seed, "train", number, WORLD)
        motions = {e.text for e in video.expressions if e.kind == "motion"}
        assert Clips(RECIPE, stage)[number].text in motions


def test_expressions_about_motion_can_be_left_out() -> None:
    texts = {
        clip.text
        for clip in map(Clips(RECIPE, replace(STAGE, timeless=True)).__getitem__, range(24))
    }
    videos = [make_video(RECIPE.seed, "train", number, WORLD) for number in range(12)]
    drawn = [e for video in videos for e in video.expressions if e.text in texts]
    timeless = [video for video in videos if not all(e.needs_time for e in video.expressions)]
    assert len(timeless) >= 6
    for video in timeless:
        assert not any(e.needs_time for e in drawn if e in video.expressions)
    kinds = {e.kind for video in videos for e in video.expressions if not e.needs_time}
    assert "motion" not in kinds
    assert {"appearance", "relation"} <= kinds


@pytest.mark.parametrize("number", range(6))
def test_a_clip_of_a_folder_has_the_masks_of_its_expression(split: DataSplit, number: int) -> None:
    clip = Clips(folder_recipe(), STAGE, split)[number]
    united = clip.masks[clip.referred].any(dim=0).numpy()
    truths = [
        video.union_masks(e, shown)
        for shown in frames_by_age(clip)
        for video in split.videos
        for e in video.expressions
        if e.text == clip.text
    ]
    assert any(np.array_equal(united, truth) for truth in truths)


def test_an_epoch_of_a_folder_shows_every_expression_once(split: DataSplit) -> None:
    clips = Clips(folder_recipe(), STAGE, split)
    texts = sorted(e.text for video in split.videos for e in video.expressions)
    count = len(texts)
    for epoch in range(2):
        assert sorted(clips[epoch * count + i].text for i in range(count)) == texts


def test_a_mirrored_clip_is_mirrored_in_text_and_masks(split: DataSplit) -> None:
    for number in range(4):
        plain = Clips(folder_recipe(), STAGE, split)[number]
        turned = Clips(folder_recipe(flip=1.0), STAGE, split)[number]
        assert turned.text == mirror_text(plain.text)
        assert torch.equal(turned.frames, plain.frames.flip(2))
        assert torch.equal(turned.masks, plain.masks.flip(3))


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left dog moving to the right", "Right dog moving to the left"),
        ("the leftmost bird, circling clockwise", "the rightmost bird, circling counterclockwise"),
        ("turning anti-clockwise", "turning clockwise"),
        ("turning counter clockwise", "turning clockwise"),
        ("the bright one that has leftovers", "the bright one that has leftovers"),
    ],
)
def test_mirrored_words(text: str, mirrored: str) -> None:
    assert mirror_text(text) == mirrored


def test_crop_and_resize_keep_frames_and_masks_together() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 3, 40, 60), np.bool_)
    masks[0, :, 10:20, 30:50] = True
    masks[1, :, 35:, :10] = True
    frames = np.repeat(masks.any(axis=0)[..., None], 3, axis=-1).astype(np.uint8) * 255
    cut = crop(Pictures(frames, masks), np.array([True, False]), 0.6, rng)
    assert cut.masks[0].any()
    assert cut.frames.shape[1] < 40
    assert np.array_equal(cut.frames[..., 0] == 255, cut.masks.any(axis=0))
    scaled = resize(cut, 96, 160)
    assert min(scaled.frames.shape[1:3]) <= 96
    assert max(scaled.frames.shape[1:3]) <= 160
    inside = scaled.frames[..., 0] >= 128
    assert (inside != scaled.masks.any(axis=0)).mean() < 0.02
    assert np.array_equal(mirror(mirror(cut)).masks, cut.masks)


def test_frames_of_a_clip() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([frame_indices(24, replace(STAGE, length=4), rng) for _ in range(300)])
    for part, first in zip(drawn.T, (0, 6, 12, 18), strict=True):
        assert set(part) == set(range(first, first + 6))
    assert frame_indices(3, replace(STAGE, length=5), rng)[-1] == 2
    # Parts that are not of equal size share no frame either.
    uneven = np.array([frame_indices(24, replace(STAGE, length=10), rng) for _ in range(300)])
    assert (np.diff(uneven, axis=1) > 0).all()
    assert set(uneven.ravel()) == set(range(24))
    near = frame_indices(100, replace(STAGE, length=5, window=10), rng)
    assert near == sorted(set(near))
    assert near[-1] - near[0] <= 20
    assert len(frame_indices(2, replace(STAGE, length=5, window=10), rng)) == 5


def cut(clip: Clip, height: int, width: int) -> Clip:
    frames, masks = clip.frames[:, :height, :width], clip.masks[..., :height, :width]
    return clip._replace(frames=frames, masks=masks)


def test_a_batch_pads_as_the_runtime_does_and_splits_into_frames(split: DataSplit) -> None:
    clip = Clips(folder_recipe(), STAGE, split)[0]
    small = cut(clip, 40, 70)
    batch = collate([small, clip])
    assert batch.frames.shape == (2, 3, 64, 96, 3)
    for row, one in enumerate((small, clip)):
        geometry = FrameGeometry((0, 0), one.frames.shape[1:3], (64, 96))
        for t, image in enumerate(one.frames.numpy()):
            assert np.array_equal(resize_frame(image, geometry)[0], batch.frames[row, t].numpy())
    assert not batch.masks[0][..., 40:, :].any()
    assert torch.equal(batch.masks[0][..., :40, :70], small.masks)
    single = batch.single_frames()
    assert single.frames.shape == (6, 1, 64, 96, 3)
    assert torch.equal(single.frames[4, 0], clip.frames[1])
    assert torch.equal(single.masks[4][:, 0], clip.masks[:, 1])
    assert (single.targets.batch, single.targets.length) == (6, 1)
    assert batch.ages.shape == (2, 3)
    assert torch.equal(single.ages, torch.zeros(6, 1, dtype=torch.int64))


@pytest.mark.parametrize("size", [(32, 96), (64, 64), (64, 33), (1, 1)])
def test_clips_of_several_sizes_are_not_joined(split: DataSplit, size: tuple[int, int]) -> None:
    """The network has no padding mask, so it would see the padding of a small clip as image."""
    clip = Clips(folder_recipe(), STAGE, split)[0]
    with pytest.raises(InputError, match=r"of 64x96 pixels cannot .* set accumulate = 0"):
        collate([clip, cut(clip, *size), clip])


@pytest.mark.parametrize(
    ("augment", "reason"),
    [
        (Augmentation(short_sides=(64,), long_side=96, crop=0.1), "augment.crop cuts"),
        (Augmentation(short_sides=(64, 80), long_side=96, crop=0), "short_sides has 2 sides"),
        (Augmentation(short_sides=(64,), long_side=128, crop=0), "have 2 sizes"),
    ],
)
def test_a_recipe_that_would_mix_sizes_is_refused_at_once(
    split: DataSplit, augment: Augmentation, reason: str
) -> None:
    wide = SimpleNamespace(size=(64, 128))
    several = DataSplit(split.meta, (*split.videos, wide))  # type: ignore[arg-type]
    stage = replace(STAGE, batch=8)
    recipe = replace(folder_recipe(), augment=augment, stages=(stage,))
    with pytest.raises(InputError, match=rf"computes 4 clips at once.*{reason}.*accumulate = 0"):
        check_sizes(recipe, several, 2)
    check_sizes(recipe, several, 8)
    check_sizes(replace(recipe, stages=(replace(stage, accumulate=0),)), several, 2)
    same = Augmentation(short_sides=(64, 64), long_side=96, crop=0.5, crop_side=1.0)
    check_sizes(replace(recipe, augment=same), split, 2)


def test_with_one_clip_at_a_time_each_part_has_one() -> None:
    stage = replace(STAGE, batch=8, accumulate=0)
    assert [stage.parts(processes) for processes in (1, 2, 4, 8)] == [8, 4, 2, 1]
    shares = [part_of_step(100, stage, 3, part, rank, 2) for part in range(4) for rank in (0, 1)]
    assert [list(share) for share in shares] == [[i] for i in range(124, 132)]
    with pytest.raises(InputError, match="batch 8 is not a multiple of 3 processes; change batch"):
        stage.parts(3)
    assert read_recipe("mevis_large").stages[0].accumulate == 0


def test_ages_count_frames_of_the_video() -> None:
    clip = Clips(RECIPE, replace(STAGE, length=4))[0]
    assert clip.ages[-1] == 0
    steps = -clip.ages.diff()
    assert (steps >= 1).all()
    assert steps.sum() > 4


def test_processes_and_parts_divide_a_step() -> None:
    stage = replace(STAGE, batch=8, accumulate=2)
    shares = [part_of_step(100, stage, 3, part, rank, 2) for part in (0, 1) for rank in (0, 1)]
    assert [i for share in shares for i in share] == list(range(124, 132))
    with pytest.raises(InputError, match="batch 8 is not a multiple of 3 processes"):
        part_of_step(0, stage, 0, 0, 0, 3)


def test_batches_resume_where_a_run_stopped() -> None:
    clips = Clips(RECIPE, STAGE)
    whole, rest = list(batches(clips, 10, range(3))), list(batches(clips, 10, range(2, 3)))
    assert len(whole) == 3
    assert torch.equal(whole[2].frames, rest[0].frames)
    assert torch.equal(whole[2].token_ids, rest[0].token_ids)


def test_a_split_without_masks_is_refused(split: DataSplit, tmp_path: Path) -> None:
    blind = DataSplit(split.meta, tuple(replace(v, annotation=None) for v in split.videos))
    with pytest.raises(InputError, match="has no ground truth"):
        Clips(folder_recipe(), STAGE, blind)
