"""Test checkpoints: complete or absent, without frozen weights, and readable by the exporter."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from rvos_deploy.errors import InputError
from rvos_deploy.networks.pan2024.config import ModelConfig, preset
from rvos_deploy.networks.pan2024.modules.checkpoint import load_checkpoint
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork, build_network
from rvos_deploy.training import checkpoints
from rvos_deploy.training.checkpoints import (
    TrainingState,
    find_checkpoint,
    load_optimizer,
    read_state,
    save_checkpoint,
)
from rvos_deploy.training.objective import make_optimizer, select_trained
from rvos_deploy.training.recipe import Stage

STAGE = Stage("joint", steps=3, batch=1, length=1, learning_rate=1e-3)
STATE = TrainingState(1, 0, 1, {"seed": 0}, "clip", best=0.5)


def miniature() -> ModelConfig:
    return replace(
        preset("tiny"),
        dim=32,
        num_queries=6,
        num_heads=4,
        norm_groups=8,
        encoder_layers=1,
        encoder_ffn=32,
        fusion_dim=32,
        frame_decoder_layers=1,
        video_decoder_layers=1,
        decoder_ffn=32,
        input_size=(64, 96),
    )


@pytest.fixture(scope="module")
def network() -> RvosNetwork:
    torch.manual_seed(0)
    return build_network(miniature())


@pytest.fixture
def optimizer(network: RvosNetwork) -> torch.optim.Optimizer:
    named = select_trained(network, STAGE)
    made = make_optimizer(named, STAGE)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    made.zero_grad()
    return made


def test_the_exporter_reads_the_weights(
    network: RvosNetwork, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path, STATE, network, optimizer)
    with safe_open(folder / "weights.safetensors", "pt") as stored:
        names = set(stored.keys())
    assert names
    assert not any(name.startswith("clip.") for name in names)
    other = RvosNetwork(network.config, network.clip)
    assert load_checkpoint(other, folder / "weights.safetensors") is False
    for name, value in other.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_state_and_moments_are_restored(
    network: RvosNetwork, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path, STATE, network, optimizer, best=True)
    assert find_checkpoint(tmp_path) == find_checkpoint(tmp_path, "best") == folder
    assert read_state(folder) == STATE
    fresh = make_optimizer(select_trained(network, STAGE), STAGE)
    load_optimizer(folder, network, fresh)
    for parameter, moments in optimizer.state.items():
        assert all(torch.equal(fresh.state[parameter][k], v) for k, v in moments.items())


def test_moments_of_another_stage_are_refused(
    network: RvosNetwork, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path, STATE, network, optimizer)
    part = replace(STAGE, trained=("video_decoder",))
    with pytest.raises(InputError, match="another stage or network"):
        load_optimizer(folder, network, make_optimizer(select_trained(network, part), part))


@pytest.mark.parametrize("failing", ["save_file", "write_json"])
def test_an_interrupted_write_leaves_the_last_checkpoint(
    network: RvosNetwork,
    optimizer: torch.optim.Optimizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    before = save_checkpoint(tmp_path, STATE, network, optimizer)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, failing, dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, replace(STATE, step=2), network, optimizer)
    monkeypatch.undo()
    assert find_checkpoint(tmp_path) == before
    assert read_state(before) == STATE
    load_checkpoint(RvosNetwork(network.config, network.clip), before / "weights.safetensors")
    # And the next one is written over what was left.
    after = save_checkpoint(tmp_path, replace(STATE, step=2), network, optimizer)
    assert find_checkpoint(tmp_path) == after
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_newest_and_the_best_are_kept(
    network: RvosNetwork, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    for step in range(1, 6):
        state = replace(STATE, step=step)
        save_checkpoint(tmp_path, state, network, optimizer, keep=2, best=step == 2)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == ["step-00000002", "step-00000004", "step-00000005"]


def test_damage_is_named(
    network: RvosNetwork, optimizer: torch.optim.Optimizer, tmp_path: Path
) -> None:
    assert find_checkpoint(tmp_path) is None
    folder = save_checkpoint(tmp_path, STATE, network, optimizer)
    (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json is no state"):
        read_state(folder)
    (folder / "optimizer.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"optimizer\.safetensors cannot be read"):
        load_optimizer(folder, network, optimizer)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="latest names step-00000001, which is not there"):
        find_checkpoint(tmp_path)


def test_a_stage_trains_the_parameters_that_it_names(network: RvosNetwork) -> None:
    part = replace(STAGE, trained=("video_decoder", "initializer"))
    chosen = select_trained(network, part)
    assert {name.split(".")[0] for name in chosen} == {"video_decoder", "initializer"}
    free = {name for name, p in network.named_parameters() if p.requires_grad}
    assert free == set(chosen)
    assert not any(p.requires_grad for p in network.clip.parameters())
    with pytest.raises(InputError, match="begins with 'decoder'"):
        select_trained(network, replace(STAGE, trained=("decoder",)))
    groups = make_optimizer(chosen, part).param_groups
    undecayed = {id(p) for p in groups[1]["params"]}
    assert id(network.video_decoder.slot_position) in undecayed
    assert all(isinstance(p, nn.Parameter) and p.ndim > 1 for p in groups[0]["params"])
