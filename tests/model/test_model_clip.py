"""Test the frozen CLIP: open_clip's numbers, eval mode, and errors that name the alternatives."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.networks.pan2024.modules import clip as clip_module
from rvos_deploy.networks.pan2024.modules import clip_weights
from rvos_deploy.networks.pan2024.modules.clip import FrozenClip, build_clip

TokenIds = Callable[[Sequence[int], int], Tensor]

# Float32 sums of a few hundred terms in another order (other kernel, other sequence length).
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

CHANNELS = {
    "large": (192, 384, 768, 1536),
    "base": (128, 256, 512, 1024),
    "tiny": (40, 80, 160, 320),
}
TEXT = {"large": (768, 768), "base": (640, 640), "tiny": (128, 256)}


@pytest.mark.parametrize("name", ["large", "base", "tiny"])
def test_shapes_at_the_preset_size(
    name: str, meta_clip: Callable[[ModelConfig], FrozenClip]
) -> None:
    config = preset(name)
    clip = meta_clip(config)
    height, width = config.input_size
    features = clip.image_features(
        torch.empty((2, height, width, 3), dtype=torch.uint8, device="meta")
    )
    for feature, channels, stride in zip(features, CHANNELS[name], (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, channels, height // stride, width // stride)
    assert clip.image_channels == list(CHANNELS[name])
    text = clip.text_features(torch.empty((3, 77), dtype=torch.int64, device="meta"))
    text_width, embed_dim = TEXT[name]
    assert text.tokens.shape == (3, 77, text_width)
    assert text.sentence.shape == (3, embed_dim)
    assert text.padding.shape == (3, 77)
    assert text.padding.dtype == torch.bool
    assert (clip.text_width, clip.embed_dim) == (text_width, embed_dim)


def test_image_features_are_the_raw_stages_of_clips_input(
    tiny_clip: FrozenClip, frames: Tensor
) -> None:
    images = frames[0].permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]
    trunk = tiny_clip.model.visual.trunk
    expected = trunk.forward_intermediates(
        (images - mean) / std, norm=False, intermediates_only=True
    )
    features = tiny_clip.image_features(frames[0])
    assert len(expected) == 4
    for feature, stage in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, stage, **ROUNDING)


@pytest.mark.parametrize("length", [12, 30, 77])
def test_text_features_equal_open_clips(
    tiny_clip: FrozenClip, token_ids: TokenIds, length: int
) -> None:
    words = [10, 1, 0, 6]
    features = tiny_clip.text_features(token_ids(words, length))
    states: list[Tensor] = []
    hook = tiny_clip.model.ln_final.register_forward_hook(lambda _m, _i, out: states.append(out))
    with torch.no_grad():
        sentence = tiny_clip.model.encode_text(token_ids(words, 77))
    hook.remove()
    torch.testing.assert_close(features.sentence, sentence, **ROUNDING)
    torch.testing.assert_close(features.tokens, states[0][:, :length], **ROUNDING)
    # Start, words and end of text are there; what comes after is padding.
    assert (~features.padding).sum(dim=1).tolist() == [count + 2 for count in words]
    assert not features.padding[:, 0].any()
    assert (features.padding.int().diff(dim=1) >= 0).all()


def test_a_sentence_that_fills_all_77_positions(tiny_clip: FrozenClip, token_ids: TokenIds) -> None:
    ids = token_ids([75], 77)
    features = tiny_clip.text_features(ids)
    assert not features.padding.any()
    with torch.no_grad():
        expected = tiny_clip.model.encode_text(ids)
    torch.testing.assert_close(features.sentence, expected, **ROUNDING)


def test_clip_stays_frozen_in_eval_mode(tiny_clip: FrozenClip, frames: Tensor) -> None:
    for module in (tiny_clip, tiny_clip.train(), tiny_clip.train(True)):
        assert module is tiny_clip
        assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in tiny_clip.parameters())
    assert all(not f.requires_grad for f in tiny_clip.image_features(frames[0, :1]))
    text = tiny_clip.text_features(torch.tensor([[49406, 5, 49407]]))
    assert not text.tokens.requires_grad
    assert not text.sentence.requires_grad


def test_weights_from_a_file(
    tiny_config: ModelConfig, tiny_clip: FrozenClip, tmp_path: Path
) -> None:
    file = tmp_path / "clip.pt"
    torch.save(tiny_clip.model.state_dict(), file)
    loaded = build_clip(tiny_config, str(file))
    for name, value in tiny_clip.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(part.training for part in loaded.modules())


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the hub's cache empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refuse(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    """Return the error for a hub at ``address``."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    large = preset("large")
    with pytest.raises(InputError) as caught:
        build_clip(large, large.clip_pretrained)
    message = str(caught.value)
    assert "\n" not in message
    repository = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    file = f"{address}/{repository}/resolve/main/open_clip_model.safetensors"
    for part in ("laion2b_s29b_b131k_ft_soup", "convnext_large_d_320", file, "--clip-weights FILE"):
        assert part in message
    assert "--random-weights" not in message  # train has no such option
    return message


def test_without_a_network_the_error_comes_at_once(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    """No server listens. The hub's client would retry for 90 s; the suite's limit is 300 s."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert "refused" in refuse(monkeypatch, address)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """The server accepts and never answers; without a limit the test would hang."""
    monkeypatch.setattr(clip_weights, "HUB_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "time" in refuse(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_name_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    import huggingface_hub

    released = threading.Event()
    monkeypatch.setattr(clip_weights, "HUB_SECONDS", -0.8)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: released.wait(60))
    try:
        assert "no answer within 0 s" in refuse(monkeypatch, "http://hub.invalid")
    finally:
        released.set()


def test_cached_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    folder = empty_cache / "models--laion--CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    file = folder / "snapshots" / "abc" / "open_clip_pytorch_model.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    large = preset("large")
    assert large.clip_pretrained is not None
    assert clip_weights.find_clip_weights(large.clip, large.clip_pretrained) == str(file)


def test_a_file_that_is_not_there(tiny_config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pt.*no published weights.*--clip-weights FILE"):
        build_clip(tiny_config, str(tmp_path / "absent.pt"))
    with pytest.raises(InputError, match=r"absent.*tags: laion2b_s29b_b131k_ft, laion2b_.*soup"):
        clip_weights.find_clip_weights(preset("large").clip, "absent")


def test_a_file_of_other_weights(tiny_config: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "clip.pt"
    torch.save({"visual.nothing": torch.zeros(2)}, file)
    with pytest.raises(InputError, match=r"clip\.pt for rvos_tiny could not be loaded"):
        build_clip(tiny_config, str(file))


def test_random_weights_change_neither_errors_nor_logging(
    monkeypatch: pytest.MonkeyPatch, tiny_config: ModelConfig
) -> None:
    asked: list[object] = []

    def broken(*_: object, pretrained: object = "?", **__: object) -> None:
        asked.append(pretrained)
        raise RuntimeError("a bug, not a missing file")

    monkeypatch.setattr(clip_module.open_clip, "create_model", broken)
    level = logging.getLogger().level
    with pytest.raises(RuntimeError, match="a bug"):
        build_clip(tiny_config)
    assert logging.getLogger().level == level
    assert asked == [None]
