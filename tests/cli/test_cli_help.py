"""Help, version, and what every error looks like."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = (
    "run",
    "batch",
    "export",
    "verify",
    "inspect",
    "evaluate",
    "benchmark",
    "choose-backend",
    "build-engine",
    "make-data",
    "pretrain-clip",
    "train",
)
HEAVY = ("torch", "onnxruntime", "onnx", "open_clip", "av", "scipy", "numpy", "PIL")


def imported(importtime: str) -> set[str]:
    """Top-level packages that ``python -X importtime`` reports."""
    return {
        line.rsplit("|", 1)[1].strip().split(".")[0]
        for line in importtime.splitlines()
        if line.startswith("import time:")
    }


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids="-".join)
def test_help_imports_nothing_heavy(process: Callable, command: tuple[str, ...]) -> None:
    result = process(*command, "--help", python=("-X", "importtime"))
    assert result.code == 0
    assert "typer" in imported(result.stderr)
    assert not imported(result.stderr) & set(HEAVY)


def test_help_lists_every_command(rvos: Callable) -> None:
    shown = rvos("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", shown)
    assert rvos().stdout == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(
    rvos: Callable, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = rvos(command, "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_version(rvos: Callable) -> None:
    result = rvos("--version")
    assert (result.code, result.stderr) == (0, "")
    number = r"\d+\.\d+\.\d+\S*"
    pattern = rf"rvos-deploy {number} \(python {number}, numpy {number}(, [\w-]+ {number})*\)\n"
    assert re.fullmatch(pattern, result.stdout)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("frobnicate",), "frobnicate"),
        (("run", "a.mp4"), "EXPRESSION"),
        (("run", "a.mp4", "the dog", "--bundle", "b", "--colour", "red"), "--colour"),
        (("run", "a.mp4", "the dog", "--bundle", "b", "--mode", "sometimes"), "--mode"),
        (("run", "a.mp4", "the dog", "--bundle", "b", "--max-frames", "0"), "--max-frames"),
        (("run", "a.mp4", "the dog", "--bundle", "b", "--max-frames", "all"), "--max-frames"),
        (("export",), "RUN|RECIPE|PRESET"),
        (("export", "tiny"), "--out"),
        (("verify",), "BUNDLE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_one_line_with_the_help_to_read(
    rvos: Callable, arguments: tuple[str, ...], what: str
) -> None:
    result = rvos(*arguments)
    assert result.code == 2
    assert what in result.error
    command = f"rvos-deploy {arguments[0]}" if arguments[0] in COMMANDS else "rvos-deploy"
    assert result.error.endswith(f"see '{command} --help'")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("-the dog", "' -the dog'"),
        ("--the dog", "' --the dog'"),
        ("-x", "' -x'"),
        ("--colour", None),
    ],
)
def test_an_expression_that_looks_like_an_option(
    rvos: Callable, video: Path, tmp_path: Path, given: str, hint: str | None
) -> None:
    small = ("--size", "64x96", "--max-frames", "1", "--out", tmp_path / "out")
    result = rvos("run", video, given, *small)
    assert result.code == 2
    assert (f"put a space before it: {hint}" in result.error) == (hint is not None)
    if hint:  # followed to the letter
        done = rvos("run", video, hint.strip("'"), *small)
        assert done.code == 0, done.stderr
    else:
        assert "expression" not in result.error
    inspected = rvos("inspect", given)
    assert "expression" not in inspected.error


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_too(process: Callable, tmp_path: Path, place: str) -> None:
    command = ["inspect", tmp_path / "none"]
    result = process(*(["--debug", *command] if place == "before" else [*command, "--debug"]))
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "read_manifest" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_an_error_of_the_system_is_one_line(
    rvos: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = rvos("run", video, "the dog", "-b", tiny_bundle, "-o", tmp_path / "file" / "out")
    assert result.code == 2
    assert str(tmp_path / "file") in result.error
