"""Test the magnitude report: every operator is seen, overflow is named, limits fail."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from rvos_deploy.benchmarks.studies import magnitudes
from rvos_deploy.benchmarks.studies.magnitudes import Layer, Magnitudes, join, require_headroom
from rvos_deploy.errors import ParityError
from rvos_deploy.export import weights
from rvos_deploy.networks.modules.float32_islands import HIDDEN, additive_mask
from rvos_deploy.networks.pan2024.modules.attention import MultiHeadAttention
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

APP = typer.Typer()
APP.command()(magnitudes.main)


def watch(module: nn.Module, *inputs: torch.Tensor) -> dict[str, Layer]:
    found = Magnitudes(module, torch.float16)
    with torch.no_grad(), found.naming(), found:
        module(*inputs)
    return found.layers


def test_magnitudes_are_those_of_each_layers_output() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).half()
    x = torch.randn(7, 6).half()
    layers = watch(module, x)
    outputs = [x]
    with torch.no_grad():
        for part in module:
            outputs.append(part(outputs[-1]))
    for index, output in enumerate(outputs[1:]):
        of_part = [v for k, v in layers.items() if k.startswith(f"{index} ")]
        assert max(layer.magnitude for layer in of_part) == float(output.abs().max())
        assert not any(layer.not_finite for layer in of_part)


def test_products_between_modules_are_seen() -> None:
    """Logits of an attention are not the output of a module."""
    torch.manual_seed(1)
    module = MultiHeadAttention(8, 2).half()
    query, key = (30 * torch.randn(1, 5, 8)).half(), (30 * torch.randn(1, 6, 8)).half()
    layers = watch(module, query, key, key)
    with torch.no_grad():
        q = module._split(module.query(query)) * 0.5
        logits = q @ module._split(module.key(key)).transpose(-2, -1)
    seen = [layer.magnitude for name, layer in layers.items() if name.startswith("network ")]
    assert float(logits.abs().max()) in seen


def test_hidden_keys_are_told_apart_from_what_was_computed() -> None:
    torch.manual_seed(2)
    module = MultiHeadAttention(8, 2).half()
    x = torch.randn(1, 5, 8).half()
    hidden = additive_mask(torch.tensor([[False, False, True, True, False]]))[:, None, None]
    layer = watch(module, x, x, x, hidden)["network add"]
    assert abs(layer.magnitude + HIDDEN) < 20
    assert 0 < layer.unhidden < 20


def test_an_overflow_is_named_where_it_begins() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2)).half()
    with torch.no_grad():
        module[0].weight.fill_(60000.0)
    layers = watch(module, torch.full((3, 2), 4.0).half())
    broken = {name: layer.not_finite for name, layer in layers.items() if layer.not_finite}
    assert list(broken.values()) == [6]
    assert next(iter(broken)).startswith("0 ")
    with pytest.raises(ParityError, match=r"1 layers gave infinities or NaN, the worst 0 "):
        require_headroom(join([list(layers.values())]), 16376)


def test_clips_are_joined_at_their_worst() -> None:
    first = [Layer("a", 3.0, 3.0, 1), Layer("b", 5.0, 5.0)]
    second = [Layer("a", 9.0, 2.0, 2)]
    assert join([first, second]) == [Layer("b", 5.0, 5.0), Layer("a", 9.0, 3.0, 3)]


def test_an_empty_measurement_fails() -> None:
    with pytest.raises(ParityError, match="nothing was measured"):
        require_headroom([], 1.0)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(2):
        image = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{index:05d}.png")
    return folder


def run(frames: Path, *more: str) -> tuple[int, str]:
    arguments = ["tiny", "--random-weights", "--video", str(frames), "--size", "32x64", *more]
    result = CliRunner().invoke(APP, arguments)
    return result.exit_code, result.output


def test_a_sound_network_passes_and_is_reported(frames: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    code, output = run(frames, "--frames", "1", "--json", str(file))
    assert code == 0, output
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["limit"] == 65504 / 4
    assert found["not_finite"] == []
    assert len(found["top"]) == 10
    assert found["top"] == sorted(found["top"], key=lambda layer: -layer["unhidden"])
    assert found["weights"].startswith("random")
    assert found["clips"] == [{"video": str(frames), "frames": 1, "input": [32, 64]}]
    assert "--random-weights" in found["command"]
    # All parts of the network were looked at.
    assert found["layers"] > 300


@pytest.mark.parametrize(
    ("factor", "message"),
    [(3e3, r"mask_features.* gave \d+, at most 16376 is allowed"), (6e4, "infinities or NaN")],
)
def test_weights_scaled_up_fail(
    frames: Path,
    tiny_network: RvosNetwork,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    message: str,
) -> None:
    network = copy.deepcopy(tiny_network)
    with torch.no_grad():
        layer = network.encoder.mask_features
        layer.weight.mul_(factor / layer.weight.abs().max())
    monkeypatch.setattr(weights, "load_network", lambda *_: network)
    code, output = run(frames, "--frames", "1")
    assert code == 1, output
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1
    assert re.search(message, output), output
