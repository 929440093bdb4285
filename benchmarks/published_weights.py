"""Measure published weights on Ref-DAVIS17: fetch, export, evaluate, and print what to record.

``python -m rvos_deploy.benchmarks.published_weights onlinerefer-r50 --data REF_DAVIS17 --out DIR``

This needs a network connection and the data set. The machines of this project have neither, so J&F
of the exported weights is the authors' figure until somebody runs this. NOT RUN with the published
weights; the tests run every step except the download.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.console.output import frame_progress, step_progress
from rvos_deploy.environment import usable_cores
from rvos_deploy.evaluation.bundle_masks import bundle_settings, evaluate_bundle
from rvos_deploy.evaluation.evaluate import ScoringOptions
from rvos_deploy.evaluation.protocols import protocol_named
from rvos_deploy.evaluation.report import report
from rvos_deploy.export.file_options import FileOptions
from rvos_deploy.export.online_refer import OnlineReferWeights, export_bundle
from rvos_deploy.export.published import published_j_and_f
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.online_refer.config import preset as online_refer_preset
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

PROTOCOL = "ref-davis"
_SCORES = {"J&F": "j_and_f", "J": "j", "F": "f"}


@with_error_lines
def main(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Preset with published weights.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of Ref-DAVIS17, as for evaluate.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for bundle/ and scores.json.")
    ],
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="FILE|URL", help="As for export.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR|FILE|URL", help="As for export.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="As for export.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="As for export.")] = False,
) -> None:
    """Fetch, export and evaluate published weights, and print J&F beside the published figure."""
    config, rules = online_refer_preset(preset), protocol_named(PROTOCOL)
    split = rules.read(data)  # before gigabytes are fetched
    files = FileOptions(checkpoint, tokenizer, cache, offline)
    found, vocabulary = files.resolve(preset)
    weights = OnlineReferWeights(checkpoint=found, tokenizer=vocabulary)
    bundle = out / "bundle"
    with step_progress() as steps:
        export_bundle(config, bundle, weights, overwrite=True, progress=steps)
    with load(bundle) as segmenter, frame_progress() as progress:
        mode = segmenter.bundle.network.default_mode
        settings = StreamSettings(mode=mode, fallback=rules.fallback)
        evaluation = evaluate_bundle(
            segmenter,
            split,
            PROTOCOL,
            settings,
            options=ScoringOptions(jobs=usable_cores(), progress=progress),
        )
        used = bundle_settings(segmenter, settings) | {"overlaps": rules.overlaps(None)}
        result = report(evaluation, used, segmenter.backend.describe())
        opened = segmenter.bundle
    write_json(out / "scores.json", result)
    _print_comparison(preset, result)
    _print_hashes(opened)


def _print_comparison(preset: str, result: Mapping[str, Any]) -> None:
    published = published_j_and_f(preset, PROTOCOL)
    beside = "no published figure" if published is None else f"published {published:.3f}"
    scores = ", ".join(f"{name} {result[key]:.4f}" for name, key in _SCORES.items())
    typer.echo(f"{preset} on {PROTOCOL}, {result['frames']} frames: {scores}; {beside}")


def _print_hashes(bundle: Bundle) -> None:
    """Print the hashes that ``export/published.py`` should record."""
    origin = bundle.manifest.weights.origin
    assert origin is not None  # exports of this version record it
    typer.echo("record in export/published.py:")
    typer.echo(f"  checkpoint {origin.network.file}: sha256 {origin.network.sha256}")
    for file in () if origin.tokenizer is None else origin.tokenizer.files:
        typer.echo(f"  vocabulary {file.file}: sha256 {file.sha256}")


if __name__ == "__main__":
    typer.run(main)
