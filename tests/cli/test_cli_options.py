"""Options that commands share: their choices are the library's, and they make its settings."""

from __future__ import annotations

from typing import get_args

import pytest
from command_line import Call

from rvos_deploy.console.stream_options import StreamOptions
from rvos_deploy.datasets.moving_sprites.world import SPLITS
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.evaluation.choices import ProtocolName
from rvos_deploy.evaluation.protocols import PROTOCOLS
from rvos_deploy.runtime.backends import registry
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.stream_settings import StreamSettings


def test_every_name_on_the_command_line_is_known_to_the_library() -> None:
    assert get_args(ProtocolName) == tuple(PROTOCOLS)
    assert ("auto", *registry.BACKENDS) == registry.BACKEND_NAMES
    assert SPLITS == ("train", "valid")


@pytest.mark.parametrize(
    "command", [("demo",), ("run", "video.mp4", "a dog"), ("verify", "tiny"), ("benchmark",)]
)
def test_an_unknown_device_is_one_line(rvos: Call, command: tuple[str, ...]) -> None:
    result = rvos(*command, "--device", "cuda:x")
    assert result.code == 2
    assert result.error.startswith("--device 'cuda:x' is unknown; known: auto, cpu, cuda, cuda:N")


def test_a_gpu_reaches_the_back_end_by_its_number(
    rvos: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def make(device: str, threads: int | None) -> Backend:
        asked.append(device)
        raise BackendError("enough")

    for name, default in (("tensorrt", "cuda"), ("onnxruntime", "cpu")):
        known = registry.KnownBackend(make, default)
        monkeypatch.setitem(registry.BACKENDS, name, known)
        for device in ("auto", "cuda:1"):
            assert rvos("demo", "--backend", name, "--device", device).error == "enough"
    assert asked == ["cuda", "cuda:1", "cpu", "cuda:1"]


def test_options_that_were_not_given_leave_the_defaults() -> None:
    assert StreamOptions().given() == []
    assert StreamOptions().settings("online") == StreamSettings()
    assert StreamOptions().settings("offline", "top1") == StreamSettings(
        mode="offline", fallback="top1"
    )


def test_options_that_were_given_win() -> None:
    options = StreamOptions(
        mode="online",
        lookahead=0,
        memory=8,
        anchors=2,
        threshold=0.4,
        fallback="none",
        size="64x96",
        mask_budget=3,
    )
    assert options.settings("offline", "top1") == StreamSettings(
        memory=8, anchors=2, threshold=0.4, size=(64, 96), mask_budget=3 * 2**20
    )
    assert options.given() == [
        "--mode",
        "--lookahead",
        "--memory",
        "--anchors",
        "--threshold",
        "--fallback",
        "--size",
        "--mask-budget",
    ]


def test_wrong_values_are_those_of_the_settings() -> None:
    with pytest.raises(InputError, match="lookahead 2 has no meaning offline"):
        StreamOptions(lookahead=2).settings("offline")
    with pytest.raises(InputError, match="size '64' is not of the form HxW"):
        StreamOptions(size="64").settings("offline")
