"""Compare J&F of a bundle with that of its PyTorch network, or of another bundle, on the same
videos.

``python -m rvos_deploy.benchmarks.studies.bundle_parity BUNDLE --checkpoint F --clip-weights F
--data DIR``
compares with the network that the bundle was exported from, offline and online;
``... BUNDLE --reference BUNDLE --data DIR --limit 0.002``
compares with another bundle, offline, and shows what a precision costs. With ``--limit``, a greater
loss gives exit code 1.

The bundle's own parity checks compare tensors and the masks of one small clip. This study compares
what users see, over whole videos.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.bundle.folder import find_bundle
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.datasets import DataSplit, read_mevis
from rvos_deploy.environment import machine, versions
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.evaluation.bundle_masks import evaluate_bundle
from rvos_deploy.evaluation.evaluate import Evaluation
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.pan2024.network import model_config
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

MOVED = 0.01
"""Expressions whose J&F changed by more are counted. Rounding at mask edges changes less; here
another object was chosen or followed.
"""


def compare(
    bundle: Path, checkpoint: Path, clip_weights: str | None, split: DataSplit
) -> dict[str, Any]:
    """Return the summaries "pytorch", "offline" and "online" of a split, and the J&F lost by
    export.

    The network uses the bundle's configuration with its threshold.

    Raises:
        RvosError: the bundle or the weights cannot be used.
    """
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.training.clips import training_tokenizer
    from rvos_deploy.training.validation import summary, validate

    found: dict[str, Any] = {}
    with load(bundle) as segmenter:
        for mode in ("offline", "online"):
            settings = StreamSettings(mode=mode)
            found[mode] = summary(evaluate_bundle(segmenter, split, settings=settings))
        network = load_network(
            model_config(segmenter.bundle.network), Weights(checkpoint, clip_weights)
        )
    found["pytorch"] = validate(network, training_tokenizer(), split)
    found["lost"] = found["pytorch"]["j_and_f"] - found["offline"]["j_and_f"]
    return found


def compare_bundles(
    bundle: Path, reference: Path, split: DataSplit, backend: str = "auto"
) -> dict[str, Any]:
    """Compare two bundles on a split.

    Args:
        bundle: the bundle under test, on ``backend``.
        reference: the bundle to compare with, on the default back end.
        split: videos with ground truth.
        backend: of ``bundle``.

    Returns:
        The summaries "reference" and "offline", the J&F that ``bundle`` lost, and how many
        expressions moved by more than ``MOVED``.

    Raises:
        RvosError: a bundle cannot be used.
    """
    from rvos_deploy.training.validation import summary

    theirs, reference_precision = _offline(reference, "auto", split)
    ours, precision = _offline(bundle, backend, split)
    changes = [
        new.j_and_f - old.j_and_f for old, new in zip(theirs.scores, ours.scores, strict=True)
    ]
    return {
        "precision": {"reference": reference_precision, "bundle": precision},
        "reference": summary(theirs),
        "offline": summary(ours),
        "lost": -sum(changes) / len(changes),
        "expressions": len(changes),
        "moved": sum(abs(change) > MOVED for change in changes),
        "largest_loss": max(0.0, -min(changes)),
    }


def _offline(bundle: Path, backend: str, split: DataSplit) -> tuple[Evaluation, str]:
    with load(bundle, backend=backend) as segmenter:
        settings = StreamSettings(mode="offline")
        return evaluate_bundle(segmenter, split, settings=settings), segmenter.bundle.precision


def require_parity(found: Mapping[str, Any], limit: float | None) -> None:
    """Raise ParityError when more than ``limit`` J&F (0 to 1) was lost; None allows any loss."""
    if limit is not None and not found["lost"] <= limit:
        raise ParityError(
            f"the bundle loses {found['lost']:.4f} J&F, at most {limit} is allowed; export it "
            "with --precision fp32, or find the graph that loses it: rvos-deploy verify"
        )


@with_error_lines
def main(
    bundle: Annotated[str, typer.Argument(help="Folder, or the name of a packaged one.")],
    data: Annotated[Path, typer.Option(help="Folder of a split in MeViS's layout.")],
    checkpoint: Annotated[Path | None, typer.Option(help="What it was exported from.")] = None,
    clip_weights: Annotated[str | None, typer.Option(help="Of the frozen CLIP part.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="A bundle to compare with, instead of PyTorch.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Of BUNDLE, with --reference.")] = "auto",
    limit: Annotated[
        float | None, typer.Option(help="J&F that may be lost, 0 to 1; exit code 1 beyond it.")
    ] = None,
    videos: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.")] = None,
) -> None:
    """Compare a bundle by J&F with its network, or with another bundle."""
    if (checkpoint is None) == (reference is None):
        raise InputError(
            "there must be exactly one thing to compare with; pass --checkpoint FILE (PyTorch) or "
            "--reference BUNDLE"
        )
    split = read_mevis(data)
    part = DataSplit(split.meta, split.videos[:videos])
    if reference is not None:
        against = f"--reference {reference}" + (
            "" if backend == "auto" else f" --backend {backend}"
        )
        found = compare_bundles(find_bundle(bundle), find_bundle(reference), part, backend)
    elif checkpoint is not None:
        against = f"--checkpoint {checkpoint} --clip-weights {clip_weights}"
        found = compare(find_bundle(bundle), checkpoint, clip_weights, part)
    _print(found)
    if json_file is not None:
        chosen = "" if videos is None else f" --videos {videos}"
        allowed = "" if limit is None else f" --limit {limit}"
        write_json(
            json_file,
            {
                "schema": "rvos-deploy/benchmark/agreement/1",
                "command": "python -m rvos_deploy.benchmarks.studies.bundle_parity "
                f"{bundle} {against} --data {data}{chosen}{allowed}",
                "videos": len(part.videos),
                **found,
                "limit": limit,
                "versions": versions("torch", "onnxruntime"),
                "machine": machine(),
            },
        )
    require_parity(found, limit)


def _print(found: Mapping[str, Any]) -> None:
    for name in ("pytorch", "reference", "offline", "online"):
        if name in found:
            row = found[name]
            typer.echo(
                f"{name:>9}  J&F {row['j_and_f']:.4f}  J {row['j']:.4f}  F {row['f']:.4f}  "
                f"N-acc {row['n_acc']:.3f}  T-acc {row['t_acc']:.3f}"
            )
    moved = (
        f"; {found['moved']} of {found['expressions']} expressions moved"
        if "moved" in found
        else ""
    )
    typer.echo(f"     lost  {found['lost']:+.5f}{moved}")


if __name__ == "__main__":
    typer.run(main)
