"""Resolve the files that an export needs, fetch missing ones, and print their origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rvos_deploy.export.published import LocalFile, ResolvedCheckpoint, ResolvedTokenizer


@dataclass(frozen=True)
class FileOptions:
    """Hold the options of ``export`` that name the origin of files."""

    checkpoint: str | None = None
    tokenizer: str | None = None
    cache: Path | None = None
    offline: bool = False

    def local(self) -> list[Path]:
        """Return the inputs on this machine, which no output may replace."""
        from rvos_deploy.export.http_transfer import is_url

        given = (self.checkpoint, self.tokenizer)
        return [Path(name) for name in given if name is not None and not is_url(name)]

    def fetch_checkpoint(self) -> LocalFile | None:
        """Fetch ``--checkpoint`` if it is a URL, and print its origin; otherwise return None.

        Raises the errors of ``published.resolve_file``.
        """
        from rvos_deploy.cache_folder import cache_folder
        from rvos_deploy.console.output import byte_progress
        from rvos_deploy.export.http_transfer import is_url
        from rvos_deploy.export.published import Fetcher, resolve_file

        if self.checkpoint is None or not is_url(self.checkpoint):
            return None
        with byte_progress() as progress:
            fetcher = Fetcher(self.cache or cache_folder(), self.offline, progress)
            file = resolve_file(self.checkpoint, fetcher)
        _print("checkpoint", file)
        return file

    def resolve(
        self, preset: str, *, random: bool = False
    ) -> tuple[ResolvedCheckpoint | None, ResolvedTokenizer | None]:
        """Return checkpoint and vocabulary of a preset with published weights; fetch if needed.

        The URL, sha256 and license of each fetched file are printed. With ``random`` weights, the
        checkpoint is None, and so is the tokenizer unless ``--tokenizer`` names one.

        Raises the errors of ``published.resolve_checkpoint`` and ``resolve_tokenizer``.
        """
        from rvos_deploy.cache_folder import cache_folder
        from rvos_deploy.console.output import byte_progress
        from rvos_deploy.export.published import Fetcher, resolve_checkpoint, resolve_tokenizer

        checkpoint = tokenizer = None
        with byte_progress() as progress:
            fetcher = Fetcher(self.cache or cache_folder(), self.offline, progress)
            # The small file comes first: its errors appear before gigabytes are fetched.
            if self.tokenizer is not None or not random:
                tokenizer = resolve_tokenizer(preset, self.tokenizer, fetcher)
            if not random:
                checkpoint = resolve_checkpoint(preset, self.checkpoint, fetcher)
        if checkpoint is not None:
            _print("checkpoint", checkpoint.file)
            _print_terms(checkpoint.origin.license, checkpoint.origin.attribution)
        if tokenizer is not None:
            _print("vocabulary", *tokenizer.files)
            _print_terms(tokenizer.origin.license, tokenizer.origin.attribution)
        return checkpoint, tokenizer


def _print(what: str, *files: LocalFile) -> None:
    """Print URL, path and sha256 of fetched files; the user already knows other paths."""
    for file in files:
        if file.url is not None:
            state = "recorded now, at its first use" if file.first_use else "as expected"
            typer.echo(f"{what}: {file.url}")
            typer.echo(f"  file: {file.path}")
            typer.echo(f"  sha256: {file.sha256}, {state}")


def _print_terms(license: str | None, attribution: str | None) -> None:
    if license is not None:
        typer.echo(f"  license: {license}; {attribution}")
