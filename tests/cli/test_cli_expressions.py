"""Arguments that slipped in among the expressions are no sentences."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rvos_deploy.bundle.folder import packaged_bundles
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer


@pytest.fixture
def refused(rvos: Callable, video: Path, tmp_path: Path) -> Callable[..., str]:
    """Pass expressions to ``run``; its one line, exit code 2, nothing written or loaded."""

    def call(*texts: str) -> str:
        out = tmp_path / "out"
        # A bundle that is not there: the expressions are looked at before it.
        result = rvos("run", video, "-b", tmp_path / "no-bundle", "-o", out, "--", *texts)
        assert result.code == 2
        assert not out.exists()
        return str(result.error)

    return call


def test_a_second_video(refused: Callable[..., str], make_video: Callable, tmp_path: Path) -> None:
    second = make_video(tmp_path / "b.mp4")
    error = refused(str(second), "the dog")
    assert f"expression '{second}' is a file that exists" in error
    assert "give one video per run" in error
    assert f"put a space before them: ' {second}'" in error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dog", "is a file that exists"),
        ("things", "is a folder that exists"),
        ("gone", "is a file that exists"),
        ("./dog", "is a file that exists"),
        ("missing.mp4", "looks like a video or picture"),
        ("my holiday.MOV", "looks like a video or picture"),
        ("https://example.com/clip", "is a URL"),
        ("rtsp://user:secret@camera/1", "is a URL"),
        ("--max-frames", "looks like an option"),
        ("-o", "looks like an option"),
        ("-", "looks like an option"),
    ],
)
def test_what_is_no_sentence(
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    found: str,
) -> None:
    (tmp_path / "dog").touch()
    (tmp_path / "things").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    assert found in refused("the ball", text)


def test_a_second_video_as_the_issue_has_it(
    rvos: Callable, video: Path, make_video: Callable, tmp_path: Path
) -> None:
    second = make_video(tmp_path / "b.mp4")
    result = rvos("run", video, second, "text", "-o", tmp_path / "out")
    assert result.code == 2
    assert "is a file that exists" in result.error


@pytest.mark.parametrize("text", ["dog", "--max-frames", "missing.mp4", "a://b"])
def test_the_way_out_works(
    rvos: Callable,
    output: Callable,
    tiny_bundle: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    """The words after a space run, and are the same words for the network."""
    (tmp_path / "dog").touch()
    monkeypatch.chdir(tmp_path)
    arguments = ("-b", tiny_bundle, "-o", "out", "--max-frames", 1, "--size", "32x32")
    result = rvos("run", video, f" {text}", *arguments)
    assert (result.code, result.stderr) == (0, "")
    tokenizer = ClipTokenizer(packaged_bundles()["tiny"] / "tokenizer.json")
    assert tokenizer(f" {text}").tolist() == tokenizer(text).tolist()


def test_sentences_that_are_meant(
    rvos: Callable, output: Callable, tiny_bundle: Path, video: Path, tmp_path: Path
) -> None:
    """The same one twice; one too long for a file's name; dots, slashes and dashes inside."""
    texts = ["the dog", "the dog", "the dog " * 100, "no. 3", "left/right", "the T-shirt. Red"]
    out = output(tmp_path / "out")
    arguments = ("-b", tiny_bundle, "-o", out.folder, "--max-frames", 1, "--size", "32x32")
    result = rvos("run", video, *texts, *arguments)
    assert result.code == 0
    assert result.stderr.startswith("warning: expression has ")
    assert out.result["expressions"] == texts
    assert all(not os.path.lexists(text) for text in texts)
