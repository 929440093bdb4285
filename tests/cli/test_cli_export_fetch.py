"""``export`` with files that must be fetched: what it prints, refuses and leaves behind."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.bundle.folder import MANIFEST, open_bundle
from rvos_deploy.bundle.manifest import NetworkOrigin, SourceFile, TokenizerOrigin, plain
from rvos_deploy.export import published
from rvos_deploy.export.file_options import FileOptions
from rvos_deploy.export.published import PUBLISHED, PublishedFile

CONTENT = random.Random(0).randbytes(300_000)
HASH = sha256(CONTENT).hexdigest()
PRESET = "onlinerefer-r50"


@pytest.fixture(autouse=True)
def _hub_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--offline sets the variable for the process; the user's own cache is never used."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("RVOS_DEPLOY_CACHE", str(tmp_path / "cache"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_is_fetched_and_named(
    rvos: Callable, file_server: Any, tmp_path: Path
) -> None:
    url = file_server.serve("/w.safetensors?token=secret", CONTENT)
    arguments = ("export", "tiny", "--out", tmp_path / "bundle", "--checkpoint", url)
    result = rvos(*arguments)
    assert result.code == 2, "the content is not safetensors"
    address, file, sha = result.stdout.splitlines()
    assert address == f"checkpoint: {file_server.url('/w.safetensors')}"
    path = Path(file.removeprefix("  file: "))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "cache")
    assert sha == f"  sha256: {HASH}, recorded now, at its first use"
    again = rvos(*arguments, "--offline")
    assert again.stdout.splitlines()[2] == f"  sha256: {HASH}, as expected"
    assert len(file_server.asked) == 1
    elsewhere = rvos(*arguments, "--offline", "--cache", tmp_path / "other")
    assert elsewhere.code == 2
    assert f"put it at {tmp_path / 'other'}" in elsewhere.error
    assert not (tmp_path / "bundle").exists()


def test_errors_come_before_the_transfer(
    rvos: Callable, file_server: Any, bundle_copy: Callable, tmp_path: Path
) -> None:
    url = file_server.serve("/w.safetensors", CONTENT)
    given = ("--checkpoint", url, "--out")
    there = rvos("export", "tiny", *given, bundle_copy())
    assert "pass --overwrite" in there.error
    assert "neither the folder" in rvos("export", "nonsense", *given, tmp_path / "b").error
    run = rvos("export", tmp_path, *given, tmp_path / "b")
    assert "leave --checkpoint out" in run.error
    both = rvos("export", "tiny", *given, tmp_path / "b", "--random-weights")
    assert "exclude each other" in both.error
    own = rvos("export", "tiny", *given, tmp_path / "b", "--tokenizer", tmp_path)
    assert "leave --tokenizer out" in own.error
    assert not file_server.asked


def test_what_is_not_there_is_one_line(rvos: Callable, file_server: Any, tmp_path: Path) -> None:
    url = file_server.url("/none.safetensors?token=secret")
    result = rvos("export", "tiny", "--out", tmp_path / "bundle", "--checkpoint", url)
    assert result.code == 2
    assert "none.safetensors does not exist (HTTP 404)" in result.error
    assert "secret" not in result.error
    assert not list(tmp_path.iterdir())


def test_a_stop_keeps_what_was_fetched(
    start: Callable[..., subprocess.Popen[str]], file_server: Any, tmp_path: Path
) -> None:
    url, cache = file_server.serve("/w.safetensors", CONTENT, hold=100_000), tmp_path / "cache"
    arguments = ("--checkpoint", url, "--out", tmp_path / "bundle", "--cache", cache)
    child = start("export", "tiny", *arguments)
    assert file_server.files["/w.safetensors"].held.wait(120)
    parts: list[Path] = []
    while not parts or parts[0].stat().st_size < 100_000:  # the bytes are on their way
        assert child.poll() is None
        parts = list(cache.rglob("w.safetensors.part"))
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=120)
    (line,) = stderr.splitlines()
    assert (child.returncode, stdout) == (130, "")
    assert line == (f"error: interrupted; run the command again, which continues from {parts[0]}")
    assert names(tmp_path) == {"w.safetensors.part", "w.safetensors.origin.json"}
    assert parts[0].read_bytes() == CONTENT[:100_000]


def test_published_files_are_named_with_their_license(
    file_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = PUBLISHED[PRESET]
    checkpoint = PublishedFile(file_server.serve("/v1.0/r50.pth", CONTENT))
    tokenizer = PublishedFile(file_server.serve("/roberta/tokenizer.json", b"{}"))
    entry = replace(
        entry,
        checkpoint=replace(entry.checkpoint, files=(checkpoint,)),
        tokenizer=replace(entry.tokenizer, files=(tokenizer,)),
    )
    monkeypatch.setitem(PUBLISHED, PRESET, entry)
    monkeypatch.setattr(published, "_SHA256", {})
    assert None not in FileOptions().resolve(PRESET)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "checkpoint", "file", "sha256", "license", "vocabulary", "file", "sha256", "license"
    ]  # fmt: skip
    assert lines[3].startswith("  license: Apache-2.0; OnlineRefer: A Simple Online Baseline")
    assert "Yinhan Liu" in lines[7]
    assert FileOptions().resolve(PRESET, random=True) == (None, None)


@pytest.fixture
def with_origin(bundle_copy: Callable, resign: Callable) -> Callable[..., Path]:
    """A bundle whose manifest says that its weights were fetched."""

    def make(**changes: Any) -> Path:
        folder = bundle_copy(MANIFEST)
        manifest = json.loads((folder / MANIFEST).read_text())
        weights, entry = manifest["weights"], PUBLISHED[PRESET]
        network = NetworkOrigin(
            file="r50.pth",
            sha256=HASH,
            url=entry.checkpoint.files[0].url,
            license=entry.checkpoint.license,
            attribution=entry.checkpoint.attribution,
        )
        tokenizer = TokenizerOrigin(
            files=tuple(
                SourceFile(file.url.rpartition("/")[2], file.sha256 or HASH, file.url)
                for file in entry.tokenizer.files
            ),
            license=entry.tokenizer.license,
            attribution=entry.tokenizer.attribution,
        )
        weights |= {"random": False, "checkpoint": "r50.pth", "checkpoint_sha256": HASH}
        weights["origin"] = {"network": plain(network) | changes, "tokenizer": plain(tokenizer)}
        resign(folder, manifest=manifest)
        return folder

    return make


def test_inspect_shows_where_fetched_files_came_from(
    rvos: Callable, with_origin: Callable, tmp_path: Path
) -> None:
    result = rvos("inspect", with_origin(), "--json", tmp_path / "inspect.json")
    assert (result.code, result.stderr) == (0, "")
    shown, entry = " ".join(result.stdout.split()), PUBLISHED[PRESET]
    for text in (
        f"weights r50.pth (sha256 {HASH[:12]}...) from {entry.checkpoint.files[0].url}",
        f"Apache-2.0; {entry.checkpoint.attribution} vocabulary",
        f"vocabulary vocab.json (sha256 9e7f63c2d15d...) from {entry.tokenizer.files[0].url}",
        f"merges.txt (sha256 1ce1664773c5...) from {entry.tokenizer.files[1].url}",
        f"MIT; {entry.tokenizer.attribution} precision",
    ):
        assert text.replace(" ", "") in shown.replace(" ", "")
    assert max(map(len, result.stdout.splitlines())) <= 120
    found = json.loads((tmp_path / "inspect.json").read_text())
    network = found["manifest"]["weights"]["origin"]["network"]
    assert network["url"] == entry.checkpoint.files[0].url


def test_a_bundle_without_them_is_read_as_before(tiny_bundle: Path) -> None:
    origin = open_bundle(tiny_bundle).manifest.weights.origin
    assert origin is not None
    assert (origin.network.url, origin.network.license, origin.tokenizer) == (None, None, None)


@pytest.mark.parametrize("key", ["url", "license", "attribution"])
@pytest.mark.parametrize("value", ["\x1b[2J", "x" * 1025, 7], ids=["escape", "long", "number"])
def test_an_origin_that_could_not_be_printed_is_refused(
    rvos: Callable, with_origin: Callable, key: str, value: object
) -> None:
    assert "is damaged" in rvos("inspect", with_origin(**{key: value})).error
