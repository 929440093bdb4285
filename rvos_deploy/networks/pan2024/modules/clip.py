"""Run the frozen convolutional CLIP: image features at four strides, and features of all tokens."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor, nn

from rvos_deploy.errors import InputError
from rvos_deploy.networks.modules.float32_islands import additive_mask
from rvos_deploy.networks.pan2024.config import ModelConfig
from rvos_deploy.networks.pan2024.modules.clip_weights import find_clip_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

open_clip.add_model_config(Path(__file__).parent / "clip_configs")


class ImageFeatures(NamedTuple):
    """Hold raw outputs of the ConvNeXt stages: float [B,channels,H/stride,W/stride]."""

    res2: Tensor
    res3: Tensor
    res4: Tensor
    res5: Tensor


class TextFeatures(NamedTuple):
    """Hold tokens float [E,L,width], sentence float [E,embed] and padding bool [E,L]."""

    tokens: Tensor
    sentence: Tensor
    padding: Tensor


class FrozenClip(nn.Module):
    """Wrap an open_clip ConvNeXt model that stays in eval mode and has no gradients.

    Source: open_clip (Ilharco et al.); image features at four strides as FC-CLIP (Yu et al. 2023).
    """

    # open_clip's classes differ by model, and their attributes have no types.
    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenClip:
        """Stay in eval mode: drop path and dropout must not disturb frozen features."""
        super().train(False)
        return self

    @property
    def image_channels(self) -> list[int]:
        """Return the channels of res2 to res5."""
        return [info["num_chs"] for info in self.model.visual.trunk.feature_info]

    @property
    def text_width(self) -> int:
        """Return the width of the text tower's tokens."""
        return int(self.model.positional_embedding.shape[1])

    @property
    def embed_dim(self) -> int:
        """Return the width of the projected sentence feature."""
        return int(self.model.text_projection.shape[1])

    def image_features(self, frames: Tensor) -> ImageFeatures:
        """Return image features; one run serves any number of expressions.

        Args:
            frames: uint8 [B,H,W,3] RGB; H and W multiples of 32.
        """
        trunk = self.model.visual.trunk
        dtype = self.model.token_embedding.weight.dtype
        x = (frames.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        x = trunk.stem(x.to(dtype))
        outputs = []
        for stage in trunk.stages:
            x = stage(x)
            outputs.append(x)
        return ImageFeatures(*outputs)

    def word_embeddings(self, token_ids: Tensor) -> Tensor:
        """Return the token embeddings, without positions: float [E,L,width]."""
        return self.model.token_embedding(token_ids)

    def text_features(self, token_ids: Tensor) -> TextFeatures:
        """Return every token's state after the final norm, and the projected end-of-text state.

        Args:
            token_ids: int64 [E,L], L at most 77: start of text, tokens, end of text, zeros.
        """
        model = self.model
        length = token_ids.shape[1]
        position = torch.arange(length, device=token_ids.device)
        causal = additive_mask(position[None, :] > position[:, None])
        x = self.word_embeddings(token_ids) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=causal.to(x.dtype)))
        # The end-of-text id is the largest, so argmax finds its first occurrence.
        end = token_ids.argmax(dim=-1)
        padding = position[None, :] > end[:, None]
        last = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return TextFeatures(x, last @ model.text_projection, padding)


def build_clip(config: ModelConfig, weights: str | None = None) -> FrozenClip:
    """Create the CLIP part through open_clip.

    Args:
        config: names the open_clip architecture.
        weights: an open_clip pretrained tag (fetched from its hub), a file, or None for random
            weights.

    Raises:
        InputError: the weights cannot be loaded; the message names the tag and the alternatives.
    """
    if config.clip not in open_clip.list_models():
        raise InputError(
            f"open_clip {open_clip.__version__} knows no model '{config.clip}'; see "
            "open_clip.list_models()"
        )
    # open_clip would block on a FIFO.
    if weights is not None and Path(weights).exists() and not Path(weights).is_file():
        raise InputError(f"CLIP weights '{weights}' are not a regular file; pass a file or a tag")
    file = None if weights is None else find_clip_weights(config.clip, weights)
    try:
        with _quiet(random=weights is None):
            model = open_clip.create_model(config.clip, pretrained=file)
    except Exception as error:  # open_clip, torch and the hub share no error class
        if weights is None:
            raise
        raise InputError(_weights_message(config, weights, error)) from error
    return FrozenClip(model)


def _weights_message(config: ModelConfig, weights: str, error: Exception) -> str:
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, pickle.UnpicklingError):
        cause = "it holds more than tensors, and loading it could run code"
    if Path(weights).is_file():
        return (
            f"CLIP weights {weights} for {config.clip} could not be loaded ({cause}); the file is "
            "damaged, or of another model: get it again, or pass another with --clip-weights"
        )
    return (
        f"CLIP weights '{weights}' could not be loaded into {config.clip} ({cause}); pass a file "
        "of open_clip weights of this architecture with --clip-weights FILE"
    )


@contextmanager
def _quiet(random: bool) -> Iterator[None]:
    """Drop open_clip's log records: errors are raised, and random weights were requested."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno < (logging.WARNING if random else logging.ERROR)

    logger = logging.getLogger()
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
