"""Test CLIP pre-training: the loss, exact resumption, output, and the check of motion words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.clip import build_clip
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer
from rvos_deploy.networks.pan2024.tokenizer_file import write_tokenizer
from rvos_deploy.training.checkpoints import find_checkpoint, read_state
from rvos_deploy.training.clip_pretraining import (
    VALID_STREAM,
    PretrainRecipe,
    caption_batches,
    contrastive_loss,
    encode_images,
    encode_texts,
    pretrain_clip,
    retrieval_accuracy,
)
from rvos_deploy.training.motion_words import motion_word_distances

RECIPE = PretrainRecipe(steps=4, batch=8, size=32, warm_up=2, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ClipTokenizer:
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return ClipTokenizer(file)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sum in one order, so that runs can be compared bit by bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(text: str) -> None:
    return


def test_emoji_without_their_font_are_refused_before_training(
    no_emoji_font: dict[str, str], tokenizer: ClipTokenizer, tmp_path: Path
) -> None:
    assert PretrainRecipe().emoji is False
    with pytest.raises(InputError, match="NotoColorEmoji"):
        pretrain_clip(preset("tiny"), tmp_path / "clip", replace(RECIPE, emoji=True), tokenizer)
    assert not list(tmp_path.iterdir())


def test_the_loss_equals_a_loop() -> None:
    torch.manual_seed(0)
    images, texts, negatives = (
        F.normalize(torch.randn(5, 7, dtype=torch.float64), dim=-1) for _ in range(3)
    )
    scale = torch.tensor(9.0, dtype=torch.float64)
    plain = 0.0
    for i in range(5):
        to_text = [scale * (images[i] @ text) for text in texts]
        to_text.append(scale * (images[i] @ negatives[i]))
        to_image = [scale * (image @ texts[i]) for image in images]
        for logits in (to_text, to_image):
            plain -= float(logits[i] - torch.logsumexp(torch.stack(logits), 0)) / 10
    assert float(contrastive_loss(images, texts, negatives, scale)) == pytest.approx(plain)


def test_embeddings_equal_open_clips(tokenizer: ClipTokenizer) -> None:
    clip = build_clip(preset("tiny"))
    (batch,) = caption_batches(RECIPE, tokenizer, 0, 1, VALID_STREAM, 0)
    normalised = (batch.images.permute(0, 3, 1, 2) - clip.mean) / clip.std
    with torch.inference_mode():
        images = clip.model.encode_image(normalised, normalize=True)
        texts = clip.model.encode_text(
            F.pad(batch.captions, (0, 77 - batch.captions.shape[1])), normalize=True
        )
        # float32 through the same layers; only the text's length differs.
        torch.testing.assert_close(encode_images(clip, batch.images), images, atol=1e-5, rtol=0)
        torch.testing.assert_close(encode_texts(clip, batch.captions), texts, atol=1e-5, rtol=0)


def test_batches_depend_on_their_number_only(tokenizer: ClipTokenizer) -> None:
    first = list(caption_batches(RECIPE, tokenizer, 0, 3, VALID_STREAM, 0))
    (third,) = caption_batches(RECIPE, tokenizer, 2, 1, VALID_STREAM, 0)
    assert torch.equal(first[2].images, third.images)
    assert first[2].texts == third.texts
    assert first[0].texts != first[1].texts


def test_an_interrupted_run_resumes_exactly(tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    config = preset("tiny")
    pretrain_clip(config, tmp_path / "whole", RECIPE, tokenizer, workers=0, progress=quiet)

    class StopHereError(Exception):
        pass

    class Once:
        steps = 0

    def interrupted_batches(*arguments):  # type: ignore[no-untyped-def]
        for batch in caption_batches(*arguments):
            if Once.steps == 2:
                raise StopHereError
            Once.steps += 1
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rvos_deploy.training.clip_pretraining.caption_batches", interrupted_batches)
        with pytest.raises(StopHereError):
            pretrain_clip(config, tmp_path / "cut", RECIPE, tokenizer, workers=0, progress=quiet)
    assert read_state(find_checkpoint(tmp_path / "cut")).step == 2
    pretrain_clip(config, tmp_path / "cut", RECIPE, tokenizer, workers=0, progress=quiet)
    whole, cut = (load_file(tmp_path / run / "clip.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    # What it wrote is what --clip-weights takes.
    clip = build_clip(config, str(tmp_path / "whole" / "clip.safetensors"))
    assert torch.equal(clip.model.state_dict()["ln_final.weight"], whole["ln_final.weight"])


def test_another_recipe_is_refused(tokenizer: ClipTokenizer, tmp_path: Path) -> None:
    config = preset("tiny")
    short = replace(RECIPE, steps=1)
    pretrain_clip(config, tmp_path, short, tokenizer, workers=0, progress=quiet)
    with pytest.raises(InputError, match="another recipe"):
        pretrain_clip(config, tmp_path, RECIPE, tokenizer, workers=0, progress=quiet)


def test_retrieval_of_an_untrained_model_is_near_chance(tokenizer: ClipTokenizer) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, batch=32)
    found = retrieval_accuracy(build_clip(preset("tiny")), recipe, tokenizer, batches=2)
    assert found["image_to_text"] < 0.3
    assert 0.2 < found["against_negative"] < 0.8


def test_the_check_detects_a_tower_that_merges_motion_words(tokenizer: ClipTokenizer) -> None:
    torch.manual_seed(0)
    clip = build_clip(preset("tiny"))
    before = motion_word_distances(clip, tokenizer)
    assert before.ratio > 0
    (left,), (right,) = (tokenizer.encode(word) for word in ("left", "right"))
    with torch.no_grad():
        embedding = clip.model.token_embedding.weight
        embedding[left] = embedding[right]
    merged = motion_word_distances(clip, tokenizer).by_pair
    assert merged["moving to the left / moving to the right"] == pytest.approx(0, abs=1e-5)
    assert merged["moving up / moving down"] > 0
