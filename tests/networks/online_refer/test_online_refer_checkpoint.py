"""A checkpoint as published is imported, and anything else is refused in one line."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rvos_deploy.errors import InputError
from rvos_deploy.networks.online_refer.config import preset
from rvos_deploy.networks.online_refer.modules.checkpoint import load_checkpoint, random_network
from rvos_deploy.networks.online_refer.modules.network import OnlineRefer

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> State:
    """Weights of a network with another seed than the one that they are loaded into."""
    state = random_network(preset("onlinerefer-tiny"), seed=7).state_dict()
    return {name: weight.clone() for name, weight in state.items()}


@pytest.fixture
def network(tiny_online_refer: OnlineRefer) -> OnlineRefer:
    return copy.deepcopy(tiny_online_refer)


def save(file: Path, state: State) -> Path:
    """Write a file as the authors' training does, with what thop and old versions left in it."""
    extra = {
        "text_encoder.embeddings.position_ids": torch.arange(130)[None],
        "criterion.empty_weight": torch.ones(2),
        "backbone.0.body.total_ops": torch.zeros(1, dtype=torch.float64),
        "total_params": torch.zeros(1, dtype=torch.float64),
    }
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1}]}
    args = argparse.Namespace(lr=1e-4, dataset_file="ytvos", masks=True, lr_drop=[6, 8], resume="")
    everything = {
        "model": {**state, **extra},
        "optimizer": optimizer,
        "lr_scheduler": {"milestones": {6: 1}},
        "epoch": 5,
        "args": args,
    }
    torch.save(everything, file)
    return file


def test_a_published_file_is_imported(network: OnlineRefer, trained: State, tmp_path: Path) -> None:
    load_checkpoint(network, save(tmp_path / "ytvos-r50-checkpoint.pth", trained))
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, trained[name]), name


def test_safetensors_of_the_same_layout_are_imported(
    network: OnlineRefer, trained: State, tmp_path: Path
) -> None:
    save_file(trained, tmp_path / "weights.safetensors")
    load_checkpoint(network, tmp_path / "weights.safetensors")
    assert all(torch.equal(weight, trained[name]) for name, weight in network.state_dict().items())


class _Attack:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["model", "args", "optimizer"])
def test_a_malicious_pickle_is_refused(
    network: OnlineRefer, trained: State, tmp_path: Path, where: str
) -> None:
    touched = tmp_path / "touched"
    attack = _Attack(f"touch {touched}")
    parts = {"model": dict(trained), "args": argparse.Namespace(), "optimizer": {}}
    parts[where] = argparse.Namespace(x=attack) if where == "args" else {"x": attack}
    torch.save(parts, tmp_path / "evil.pth")
    error = refusal(network, tmp_path / "evil.pth")
    assert "loading it could run code" in error
    assert not touched.exists()


def test_another_class_than_namespace_is_refused(
    network: OnlineRefer, trained: State, tmp_path: Path
) -> None:
    torch.save({"model": trained, "args": Path("x")}, tmp_path / "w.pth")
    assert "holds more than tensors" in refusal(network, tmp_path / "w.pth")


def without(state: State) -> None:
    del state["query_embed.weight"]


def with_another(state: State) -> None:
    state["query_embed.scale"] = torch.ones(1)


def of_another_size(state: State) -> None:
    state["query_embed.weight"] = torch.zeros(7, 64)


def whole_numbers(state: State) -> None:
    state["query_embed.weight"] = torch.zeros(5, 64, dtype=torch.int64)


def no_tensor(state: State) -> None:
    state["query_embed.weight"] = "weights"  # type: ignore[assignment]


def sparse(state: State) -> None:
    state["query_embed.weight"] = torch.zeros(5, 64).to_sparse()


def not_a_number(state: State) -> None:
    state["query_embed.weight"] = torch.full((5, 64), torch.nan)


def another_alias(state: State) -> None:
    name = "transformer.decoder.bbox_embed.1.layers.0.bias"
    state[name] = state[name] + 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, "it lacks query_embed.weight"),
        (with_another, "it has unknown query_embed.scale"),
        (of_another_size, "it has other sizes for query_embed.weight [7, 64] instead of [5, 64]"),
        (whole_numbers, "it has other types for query_embed.weight torch.int64 instead of torch.f"),
        (no_tensor, "it has other types for query_embed.weight str instead of numbers"),
        (sparse, "it has other types for query_embed.weight torch.sparse_coo on cpu"),
        (not_a_number, "it has NaN or infinity in query_embed.weight"),
        (
            another_alias,
            "it has other numbers than bbox_embed.* in transformer.decoder.bbox_embed.1",
        ),
    ],
)
def test_a_file_that_differs_is_refused(
    network: OnlineRefer,
    trained: State,
    tmp_path: Path,
    damage: Callable[[State], None],
    message: str,
) -> None:
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    state = dict(trained)
    damage(state)
    assert message in refusal(network, save(tmp_path / "w.pth", state))
    after = network.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_one_error_names_every_kind(network: OnlineRefer, trained: State, tmp_path: Path) -> None:
    state = {name: weight for name, weight in trained.items() if "track_embed" not in name}
    with_another(state)
    not_a_number(state)
    another_alias(state)
    error = refusal(network, save(tmp_path / "w.pth", state))
    assert "lacks track_embed.linear1.bias, track_embed.linear1.weight, " in error
    assert " and 3 more; it has unknown query_embed.scale; it has NaN" in error
    assert "; it has other numbers than bbox_embed.*" in error
    assert "'onlinerefer-tiny'" in error


def test_weights_of_another_preset_are_refused_briefly(
    network: OnlineRefer, trained: State, tmp_path: Path
) -> None:
    other = {name: torch.zeros(2, 2) for name in trained}
    error = refusal(network, save(tmp_path / "w.pth", other))
    assert len(error) < 600, error


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"<html>not found</html>"])
def test_what_is_no_checkpoint_is_refused(
    network: OnlineRefer, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert "w.pth" in refusal(network, tmp_path / "w.pth")
    assert "--checkpoint needs" in refusal(network, tmp_path / "absent.pth")


def refusal(network: OnlineRefer, file: Path) -> str:
    with pytest.raises(InputError) as error:
        load_checkpoint(network, file)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_random_weights_depend_on_the_seed(trained: State, tiny_online_refer: OnlineRefer) -> None:
    again = random_network(preset("onlinerefer-tiny"), seed=7).state_dict()
    assert all(torch.equal(weight, trained[name]) for name, weight in again.items())
    other = tiny_online_refer.state_dict()
    assert not torch.equal(other["query_embed.weight"], trained["query_embed.weight"])
