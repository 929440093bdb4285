"""Share a tiny network, frames and sentences between the tests of the network.

Test modules cannot import one another (``--import-mode=importlib``), so helpers are fixtures that
return functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.networks.pan2024.modules.clip import FrozenClip, TextFeatures, build_clip
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

START_OF_TEXT, END_OF_TEXT = 49406, 49407

MakeNetwork = Callable[..., RvosNetwork]
TokenIds = Callable[[Sequence[int], int], Tensor]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: the tensors are small, and more threads stall on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Seed every test, so that no test depends on another."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return preset("tiny")


@pytest.fixture(scope="session")
def tiny_clip(tiny_config: ModelConfig) -> FrozenClip:
    torch.manual_seed(0)
    return build_clip(tiny_config)


@pytest.fixture(scope="session")
def make_network(tiny_config: ModelConfig, tiny_clip: FrozenClip) -> MakeNetwork:
    """Return a maker of tiny networks with changed fields; all share one frozen CLIP."""

    def make(**changes: Any) -> RvosNetwork:
        torch.manual_seed(1)
        return RvosNetwork(replace(tiny_config, **changes), tiny_clip)

    return make


@pytest.fixture(scope="session")
def tiny_network(make_network: MakeNetwork) -> RvosNetwork:
    """Return a read-only network; biases differ from their initial zeros, so all are tested."""
    network = make_network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="session")
def meta_clip() -> Callable[[ModelConfig], FrozenClip]:
    """Return a maker of CLIP models without memory, for shapes and parameter counts."""

    def make(config: ModelConfig) -> FrozenClip:
        with torch.device("meta"):
            return FrozenClip(open_clip.create_model(config.clip, device="meta"))

    return make


@pytest.fixture(scope="session")
def token_ids() -> TokenIds:
    """Return a maker of sentences: int64 [len(words), length], zeros after the end of text."""

    def make(words: Sequence[int], length: int) -> Tensor:
        random = np.random.RandomState(3)
        ids = np.zeros((len(words), length), dtype=np.int64)
        for row, count in zip(ids, words, strict=True):
            sentence = [START_OF_TEXT, *random.randint(1, START_OF_TEXT, count), END_OF_TEXT]
            row[: count + 2] = sentence
        return torch.from_numpy(ids)

    return make


@pytest.fixture(scope="session")
def frames() -> Tensor:
    """Return two clips of three frames, 64x96: noise on a slope, so every place is unique."""
    random = np.random.RandomState(5)
    y, x = np.mgrid[:64, :96]
    slope = np.stack([x * 2, y * 3, x + y], axis=-1) % 256
    noise = random.randint(0, 256, (2, 3, 64, 96, 3))
    return torch.from_numpy(((slope + noise) // 2).astype(np.uint8))


@pytest.fixture
def text(tiny_config: ModelConfig) -> TextFeatures:
    """Return resized text of two sentences, 5 and 3 tokens long."""
    padding = torch.arange(5)[None] >= torch.tensor([[5], [3]])
    dim = tiny_config.dim
    return TextFeatures(torch.randn(2, 5, dim), torch.randn(2, dim), padding)
