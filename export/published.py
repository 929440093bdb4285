"""Locate published weights, state their licenses, and resolve the files that ``export`` needs.

NOT FETCHED so far: no machine of this project reaches these servers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.bundle.manifest import NetworkOrigin, SourceFile, TokenizerOrigin
from rvos_deploy.errors import InputError
from rvos_deploy.export.download import MAXIMUM_BYTES, fetch
from rvos_deploy.export.http_transfer import is_url
from rvos_deploy.files import sha256_file
from rvos_deploy.progress import CountProgress, ignore_counts

_MAXIMUM_VOCABULARY_BYTES = 64 << 20
VOCABULARY, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
"""Names of the two files of a byte-level BPE, and of the file that combines them."""


@dataclass(frozen=True)
class PublishedFile:
    """Hold a file that others publish; ``sha256`` is None if this project does not know it."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class PublishedPart:
    """Hold files of one origin, their license (SPDX), and their authors with the paper to cite."""

    files: tuple[PublishedFile, ...]
    license: str
    attribution: str

    def has(self, files: Sequence[LocalFile]) -> bool:
        """Return whether these files are the published ones."""
        return len(files) == len(self.files) and all(map(_is_published, files, self.files))


@dataclass(frozen=True)
class PublishedWeights:
    """Hold the published files of a preset, and the published results.

    Args:
        checkpoint: one file with the network, its text encoder included.
        tokenizer: the vocabulary.
        j_and_f: the authors' J&F by protocol, 0 to 1; nobody has reproduced it with an export.
    """

    checkpoint: PublishedPart
    tokenizer: PublishedPart
    j_and_f: Mapping[str, float]


# The URL names a commit instead of "main", so the files cannot change.
_ROBERTA = (
    "https://huggingface.co/FacebookAI/roberta-base/resolve/"
    "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
)

PUBLISHED: dict[str, PublishedWeights] = {
    "onlinerefer-r50": PublishedWeights(
        # The authors' README links releases/edit/..., the page where they edit the release. Its
        # other links show that releases/download/... serves the files.
        checkpoint=PublishedPart(
            (
                PublishedFile(
                    "https://github.com/wudongming97/OnlineRefer/releases/download/v1.0/"
                    "ytvos-r50-checkpoint.pth"
                ),
            ),
            "Apache-2.0",
            "OnlineRefer: A Simple Online Baseline for Referring Video Object Segmentation. "
            "Dongming Wu, Tiancai Wang, Yuang Zhang, Xiangyu Zhang, Jianbing Shen. ICCV 2023, "
            "arXiv:2307.09356. https://github.com/wudongming97/OnlineRefer",
        ),
        tokenizer=PublishedPart(
            (
                PublishedFile(
                    f"{_ROBERTA}/{VOCABULARY}",
                    "9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
                ),
                PublishedFile(
                    f"{_ROBERTA}/{MERGES}",
                    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                ),
            ),
            "MIT",
            "RoBERTa: A Robustly Optimized BERT Pretraining Approach. Yinhan Liu, Myle Ott, "
            "Naman Goyal, Jingfei Du, Mandar Joshi, Danqi Chen, Omer Levy, Mike Lewis, "
            "Luke Zettlemoyer, Veselin Stoyanov. 2019, arXiv:1907.11692. "
            "https://huggingface.co/FacebookAI/roberta-base",
        ),
        j_and_f={"ref-youtube-vos": 0.573, "ref-davis": 0.593},
    ),
}
"""Published weights by preset."""


def published_j_and_f(preset: str, protocol: str) -> float | None:
    """Return the authors' J&F of a preset by a protocol, 0 to 1; None: not published."""
    published = PUBLISHED.get(preset)
    return None if published is None else published.j_and_f.get(protocol)


_SHA256 = {
    file.url: file.sha256
    for published in PUBLISHED.values()
    for part in (published.checkpoint, published.tokenizer)
    for file in part.files
}


@dataclass(frozen=True)
class LocalFile:
    """Hold a file that is on this machine.

    Args:
        path: path of the file.
        sha256: hash of its content, hex.
        url: URL that it was fetched from, without secrets; None: the user gave a path.
        first_use: the file was fetched for the first time, and its sha256 was recorded now.
    """

    path: Path
    sha256: str
    url: str | None = None
    first_use: bool = False

    @property
    def source(self) -> SourceFile:
        """Return the file's record for a manifest."""
        return SourceFile(self.path.name, self.sha256, self.url)


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """Hold a checkpoint on this machine, and its origin for the manifest."""

    file: LocalFile
    origin: NetworkOrigin


@dataclass(frozen=True)
class ResolvedTokenizer:
    """Hold a vocabulary on this machine, and its origin for the manifest.

    ``files``: ``vocab.json`` and ``merges.txt``, or one ``tokenizer.json``.
    """

    files: tuple[LocalFile, ...]
    origin: TokenizerOrigin

    @property
    def path(self) -> Path:
        """Return the file to read: ``tokenizer.json``, or ``vocab.json`` beside its merges."""
        return self.files[0].path


@dataclass(frozen=True)
class Fetcher:
    """Configure how files are fetched: the cache, offline use, and progress."""

    cache: Path
    offline: bool = False
    progress: CountProgress = ignore_counts


def resolve_file(given: str, fetcher: Fetcher, maximum: int = MAXIMUM_BYTES) -> LocalFile:
    """Return the file of a path or URL; a published file must have its published sha256.

    Raises:
        InputError: the file does not exist, or the URL cannot be fetched.
        DownloadError: the file cannot be fetched, or has another sha256 than expected.
    """
    if is_url(given):
        found = fetch(
            given,
            fetcher.cache,
            sha256=_SHA256.get(given),
            offline=fetcher.offline,
            progress=fetcher.progress,
            maximum=maximum,
        )
        return LocalFile(found.path, found.sha256, found.url, found.first_use)
    path = Path(given)
    if not path.is_file():
        raise InputError(f"{given} is not a file; give the path or the http(s) address of a file")
    try:
        return LocalFile(path, sha256_file(path))
    except OSError as error:
        raise InputError(f"{given} cannot be read: {error.strerror}; check its rights") from None


def resolve_checkpoint(preset: str, given: str | None, fetcher: Fetcher) -> ResolvedCheckpoint:
    """Return the checkpoint of a preset: the published file, or the file that ``given`` names.

    Raises:
        InputError: the file does not exist, or the URL cannot be fetched.
        DownloadError: the file cannot be fetched, or differs from the published file.
    """
    published = PUBLISHED.get(preset)
    part = None if published is None else published.checkpoint
    if given is not None:
        file = resolve_file(given, fetcher)
    elif part is not None:
        file = resolve_file(part.files[0].url, fetcher)
    else:
        raise InputError(
            f"'{preset}' has no published weights; pass --checkpoint FILE, or --random-weights"
        )
    terms = part if part is not None and part.has([file]) else None
    origin = NetworkOrigin(
        file=file.path.name,
        sha256=file.sha256,
        url=file.url,
        license=terms.license if terms else None,
        attribution=terms.attribution if terms else None,
    )
    return ResolvedCheckpoint(file, origin)


def resolve_tokenizer(preset: str, given: str | None, fetcher: Fetcher) -> ResolvedTokenizer:
    """Return the vocabulary of a preset: the published files, or the files that ``given`` names.

    Args:
        preset: name of a preset in ``PUBLISHED``.
        given: a folder that holds ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``; one of
            these files; or the URL of one. ``merges.txt`` must be beside ``vocab.json``.
        fetcher: how files are fetched.

    Raises:
        InputError: a file does not exist, or a URL cannot be fetched.
        DownloadError: a file cannot be fetched, or differs from the published file.
    """
    published = PUBLISHED.get(preset)
    part = None if published is None else published.tokenizer
    if given is not None:
        names = _tokenizer_files(given)
    elif part is not None:
        names = [file.url for file in part.files]
    else:
        raise InputError(
            f"'{preset}' has no published vocabulary; pass --tokenizer, or --random-weights"
        )
    files = tuple(resolve_file(name, fetcher, _MAXIMUM_VOCABULARY_BYTES) for name in names)
    terms = part if part is not None and part.has(files) else None
    origin = TokenizerOrigin(
        files=tuple(file.source for file in files),
        license=terms.license if terms else None,
        attribution=terms.attribution if terms else None,
    )
    return ResolvedTokenizer(files, origin)


def _tokenizer_files(given: str) -> list[str]:
    """Return paths or URLs of a vocabulary's files."""
    if is_url(given):
        # A query (?download=true) belongs to the URLs of both files.
        before, name, after = given.rpartition(VOCABULARY)
        whole = name and after[:1] in ("", "?", "#") and before.endswith("/")
        return [given, f"{before}{MERGES}{after}"] if whole else [given]
    path = Path(given)
    if path.is_dir():
        if (path / TOKENIZER).is_file():
            return [str(path / TOKENIZER)]
        if (path / VOCABULARY).is_file() and (path / MERGES).is_file():
            return [str(path / VOCABULARY), str(path / MERGES)]
        raise InputError(
            f"{given} holds neither {TOKENIZER} nor {VOCABULARY} with {MERGES}; give the folder of "
            "RoBERTa's vocabulary"
        )
    if path.name in (VOCABULARY, MERGES):
        return [str(path.with_name(VOCABULARY)), str(path.with_name(MERGES))]
    return [given]


def _is_published(file: LocalFile, published: PublishedFile) -> bool:
    return file.url == published.url or file.sha256 == published.sha256
