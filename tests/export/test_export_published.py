"""Published weights: the table, the ways to give files, and the origin that a manifest gets."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rvos_deploy.bundle.manifest import NetworkOrigin, Origin, TokenizerOrigin
from rvos_deploy.errors import DownloadError, InputError
from rvos_deploy.export import published
from rvos_deploy.export.http_transfer import check_url
from rvos_deploy.export.published import (
    PUBLISHED,
    Fetcher,
    PublishedFile,
    resolve_checkpoint,
    resolve_tokenizer,
)

PRESET = "onlinerefer-r50"
WEIGHTS, VOCABULARY, MERGES = b"weights", b'{"a": 0}', b"#version: 0.2\n"


def hexdigest(content: bytes) -> str:
    return sha256(content).hexdigest()


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "cache")


@pytest.fixture
def served(file_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Point the table's addresses to a local server; the hashes of the vocabulary are known."""
    checkpoint = (PublishedFile(file_server.serve("/v1.0/r50.pth", WEIGHTS)),)
    tokenizer = (
        PublishedFile(file_server.serve("/roberta/vocab.json", VOCABULARY), hexdigest(VOCABULARY)),
        PublishedFile(file_server.serve("/roberta/merges.txt", MERGES), hexdigest(MERGES)),
    )
    entry = PUBLISHED[PRESET]
    entry = replace(
        entry,
        checkpoint=replace(entry.checkpoint, files=checkpoint),
        tokenizer=replace(entry.tokenizer, files=tokenizer),
    )
    monkeypatch.setitem(PUBLISHED, PRESET, entry)
    known = {file.url: file.sha256 for file in (*checkpoint, *tokenizer)}
    monkeypatch.setattr(published, "_SHA256", known)
    return file_server


def test_every_entry_can_be_fetched_and_recorded() -> None:
    for entry in PUBLISHED.values():
        for file in (*entry.checkpoint.files, *entry.tokenizer.files):
            check_url(file.url)
            assert file.url.startswith("https://")
        for file in entry.tokenizer.files:
            assert file.sha256 is not None
            assert "/main/" not in file.url, "a branch changes"
        origin = Origin(
            NetworkOrigin(
                file="w.pth",
                sha256="0" * 64,
                url=entry.checkpoint.files[0].url,
                license=entry.checkpoint.license,
                attribution=entry.checkpoint.attribution,
            ),
            tokenizer=TokenizerOrigin(
                files=(),
                license=entry.tokenizer.license,
                attribution=entry.tokenizer.attribution,
            ),
        )
        text = msgspec.json.encode(origin).replace(
            b'"files":[]', b'"files":[{"file":"v","sha256":"%s"}]' % (b"0" * 64)
        )
        assert msgspec.json.decode(text, type=Origin).network == origin.network


def test_a_preset_alone_is_the_published_files(served: Any, fetcher: Fetcher) -> None:
    entry = PUBLISHED[PRESET]
    found = resolve_checkpoint(PRESET, None, fetcher)
    assert found.file.path.read_bytes() == WEIGHTS
    assert found.file.first_use
    assert found.origin == NetworkOrigin(
        file="r50.pth",
        sha256=hexdigest(WEIGHTS),
        url=entry.checkpoint.files[0].url,
        license="Apache-2.0",
        attribution=entry.checkpoint.attribution,
    )
    vocabulary = resolve_tokenizer(PRESET, None, fetcher)
    assert vocabulary.path.read_bytes() == VOCABULARY
    assert vocabulary.path.with_name("merges.txt").read_bytes() == MERGES
    assert not any(file.first_use for file in vocabulary.files)
    assert vocabulary.origin.license == "MIT"
    assert [file.url for file in vocabulary.origin.files] == [f.url for f in entry.tokenizer.files]
    asked = len(served.asked)
    resolve_checkpoint(PRESET, None, replace(fetcher, offline=True))
    resolve_tokenizer(PRESET, None, replace(fetcher, offline=True))
    assert len(served.asked) == asked


def test_a_vocabulary_that_is_not_the_published_one_is_refused(
    served: Any, fetcher: Fetcher
) -> None:
    served.files["/roberta/merges.txt"].content = b"other"
    for given in (None, PUBLISHED[PRESET].tokenizer.files[0].url):
        with pytest.raises(DownloadError, match=r"merges\.txt gave a file with the sha256"):
            resolve_tokenizer(PRESET, given, fetcher)


def test_files_of_the_user_have_no_license_unless_they_are_the_published_ones(
    served: Any, fetcher: Fetcher, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "vocab.json").write_bytes(VOCABULARY)
    (mine / "merges.txt").write_bytes(b"mine")
    (mine / "w.pth").write_bytes(b"mine")
    found = resolve_checkpoint(PRESET, str(mine / "w.pth"), fetcher)
    assert found.origin == NetworkOrigin(file="w.pth", sha256=hexdigest(b"mine"))
    assert resolve_tokenizer(PRESET, str(mine), fetcher).origin.license is None
    (mine / "merges.txt").write_bytes(MERGES)
    for given in (mine, mine / "vocab.json", mine / "merges.txt"):
        vocabulary = resolve_tokenizer(PRESET, str(given), fetcher)
        assert vocabulary.path == mine / "vocab.json"
        assert vocabulary.origin.license == "MIT"
        assert [file.url for file in vocabulary.origin.files] == [None, None]
    (mine / "tokenizer.json").write_bytes(b"{}")
    for given in (mine, mine / "tokenizer.json"):
        assert resolve_tokenizer(PRESET, str(given), fetcher).path == mine / "tokenizer.json"
    assert not served.asked


def test_addresses_of_the_user_are_fetched(file_server: Any, fetcher: Fetcher) -> None:
    url = file_server.serve("/mine/w.pth?token=secret", b"mine")
    found = resolve_checkpoint(PRESET, url, fetcher)
    assert found.origin.url == file_server.url("/mine/w.pth")
    assert found.origin.license is None
    url = file_server.serve("/mine/vocab.json?token=secret", VOCABULARY)
    file_server.serve("/mine/merges.txt?token=secret", MERGES)
    vocabulary = resolve_tokenizer(PRESET, url, fetcher)
    assert vocabulary.path.with_name("merges.txt").read_bytes() == MERGES
    url = file_server.serve("/mine/tokenizer.json", b"{}")
    assert resolve_tokenizer(PRESET, url, fetcher).path.read_bytes() == b"{}"


def test_files_that_are_not_there_are_one_line(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.pth is not a file; give the path or the http"):
        resolve_checkpoint(PRESET, str(tmp_path / "w.pth"), fetcher)
    with pytest.raises(InputError, match="give a local file by its path"):
        resolve_checkpoint(PRESET, f"file://{tmp_path}/w.pth", fetcher)
    with pytest.raises(InputError, match=r"holds neither tokenizer\.json nor vocab\.json with"):
        resolve_tokenizer(PRESET, str(tmp_path), fetcher)
    (tmp_path / "vocab.json").write_bytes(VOCABULARY)
    with pytest.raises(InputError, match=r"merges\.txt is not a file"):
        resolve_tokenizer(PRESET, str(tmp_path / "vocab.json"), fetcher)
