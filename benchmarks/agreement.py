"""J&F of one network by PyTorch and by its bundle, offline and online, on the same videos.

``python -m rvos_deploy.benchmarks.agreement BUNDLE --checkpoint F --clip-weights F --data DIR``

The bundle's own proofs compare tensors and the masks of one small clip; this compares what a user
is interested in, over whole videos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rvos_deploy.errors import RvosError
from rvos_deploy.evaluation.bundle_masks import evaluate_bundle
from rvos_deploy.json_file import write_json
from rvos_deploy.runtime.bundle import find_bundle
from rvos_deploy.runtime.environment import machine, versions
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.runtime.settings import StreamSettings
from rvos_deploy.training.data import DataSplit, read_mevis


def compare(
    bundle: Path, checkpoint: Path, clip_weights: str | None, split: DataSplit
) -> dict[str, Any]:
    """Summaries "pytorch", "offline" and "online" of a split, and the J&F that export lost.

    The network has the bundle's configuration, its threshold included.

    Raises:
        RvosError: the bundle or the weights cannot be used.
    """
    from rvos_deploy.export.bundle_export import Weights, load_network
    from rvos_deploy.training.clips import training_tokenizer
    from rvos_deploy.training.validation import summary, validate

    found: dict[str, Any] = {}
    with load(bundle) as segmenter:
        for mode in ("offline", "online"):
            settings = StreamSettings(mode=mode)
            found[mode] = summary(evaluate_bundle(segmenter, split, settings=settings))
        network = load_network(segmenter.bundle.config, Weights(checkpoint, clip_weights))
    found["pytorch"] = validate(network, training_tokenizer(), split)
    found["lost"] = found["pytorch"]["j_and_f"] - found["offline"]["j_and_f"]
    return found


def main(
    bundle: Annotated[str, typer.Argument(help="Folder, or the name of a packaged one.")],
    checkpoint: Annotated[Path, typer.Option(help="What it was exported from.")],
    data: Annotated[Path, typer.Option(help="Folder of a split in MeViS's layout.")],
    clip_weights: Annotated[str | None, typer.Option(help="Of the frozen CLIP part.")] = None,
    videos: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.")] = None,
) -> None:
    """Compare the network and its bundle by J&F."""
    try:
        split = read_mevis(data)
        part = DataSplit(split.meta, split.videos[:videos])
        found = compare(find_bundle(bundle), checkpoint, clip_weights, part)
    except RvosError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    for name in ("pytorch", "offline", "online"):
        row = found[name]
        typer.echo(
            f"{name:>8}  J&F {row['j_and_f']:.4f}  J {row['j']:.4f}  F {row['f']:.4f}  "
            f"N-acc {row['n_acc']:.3f}  T-acc {row['t_acc']:.3f}"
        )
    if json_file is not None:
        chosen = "" if videos is None else f" --videos {videos}"
        write_json(
            json_file,
            {
                "schema": "rvos-deploy/benchmark/agreement/1",
                "command": f"python -m rvos_deploy.benchmarks.agreement {bundle} "
                f"--checkpoint {checkpoint} --clip-weights {clip_weights} --data {data}{chosen}",
                "videos": len(part.videos),
                **found,
                "versions": versions("torch"),
                "machine": machine(),
            },
        )


if __name__ == "__main__":
    typer.run(main)
