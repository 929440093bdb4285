"""Find what limits J&F, the masks or the choice among them, and which threshold is best.

``python -m rvos_deploy.benchmarks.studies.selection CONFIG --checkpoint F --clip-weights F
--data DIR``

An oracle that knows the truth takes the best query of every object that is meant. What the oracle
misses is the masks' error; the difference between oracle and network is the selection's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from torch import Tensor

from rvos_deploy.benchmarks.studies.video_queries import decode_queries
from rvos_deploy.console.error_lines import with_error_lines
from rvos_deploy.datasets import VideoRecord, read_mevis
from rvos_deploy.environment import machine, versions
from rvos_deploy.evaluation.metrics import region_similarity
from rvos_deploy.graph_io.frame_geometry import MASK_STRIDE, FrameGeometry, upsample_mask
from rvos_deploy.graph_io.tokenizer import Tokenizer
from rvos_deploy.json_file import write_json
from rvos_deploy.networks.pan2024.config import preset
from rvos_deploy.networks.pan2024.modules.mask_head import unite_masks
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 20))
ON_OBJECT = 0.5
"""The least IoU over the whole clip of a query that is on an object."""


@dataclass(frozen=True)
class ExpressionDiagnosis:
    """The diagnosis of one expression.

    Args:
        kind: of the expression.
        oracle_j: J of the union of the best queries of the meant objects; 1 where none is meant.
        selected: for every threshold, whether the passing queries are on the meant objects and on
            nothing else.
        j: for every threshold, J of the network's masks.
    """

    kind: str
    oracle_j: float
    selected: tuple[bool, ...]
    j: tuple[float, ...]


@torch.inference_mode()
def diagnose(
    network: RvosNetwork, tokenizer: Tokenizer, video: VideoRecord
) -> list[ExpressionDiagnosis]:
    """Decode a whole video offline, and compare every query's masks with every object's."""
    truth = torch.from_numpy(video.object_masks())
    queries = decode_queries(network, tokenizer, video)
    small = network_truth(truth, queries.geometry)
    results = []
    for row, expression in enumerate(video.expressions):
        meant = np.flatnonzero(video.referred(expression)).tolist()
        union = truth[meant].any(dim=0).numpy()
        found = diagnose_expression(
            queries.logits[row], queries.scores[row], small, meant, union, queries.geometry
        )
        results.append(ExpressionDiagnosis(expression.kind or "none", *found))
    return results


def diagnose_expression(
    logits: Tensor,
    scores: Tensor,
    small: Tensor,
    meant: list[int],
    union: NDArray[np.bool_],
    geometry: FrameGeometry,
) -> tuple[float, tuple[bool, ...], tuple[float, ...]]:
    """Return ``oracle_j``, ``selected`` and ``j`` of one expression.

    Args:
        logits: mask logits of all queries [T,N,h,w], at stride 4.
        scores: [N].
        small: truth of all objects, bool [K,T,h,w], at stride 4.
        meant: indices of the objects that the expression means.
        union: truth of the expression as displayed, bool [T,H,W].
        geometry: of the frames.
    """
    masks = (logits > 0).transpose(0, 1).flatten(1)
    both = masks.float() @ small.flatten(1).float().T
    areas = masks.sum(dim=1)[:, None] + small.flatten(1).sum(dim=1)
    overlap = both / (areas - both).clamp(min=1)
    best, on = overlap.max(dim=1)
    known: dict[tuple[int, ...], float] = {}

    def j_of(queries: list[int]) -> float:
        """Return J of the union of queries; many thresholds pass the same queries."""
        key = tuple(queries)
        if key not in known:
            chosen = torch.zeros_like(scores)
            chosen[queries] = 1.0
            limit = torch.full((len(logits),), 0.5)
            maps = unite_masks(logits, chosen.expand(len(logits), -1), limit).numpy()
            shown = np.stack([upsample_mask(frame, geometry) for frame in maps])
            known[key] = float(np.mean(list(map(region_similarity, shown, union))))
        return known[key]

    right = overlap[:, meant].argmax(dim=0).tolist()
    selected, values = [], []
    for threshold in THRESHOLDS:
        passing = (scores > threshold).nonzero().flatten().tolist()
        seen = [n for n in passing if masks[n].any()]
        selected.append({int(on[n]) if best[n] >= ON_OBJECT else -1 for n in seen} == set(meant))
        values.append(j_of(passing))
    return j_of(sorted(set(right))), tuple(selected), tuple(values)


def network_truth(truth: Tensor, geometry: FrameGeometry) -> Tensor:
    """Resize displayed masks bool [K,T,H,W] to the network's stride 4: bool [K,T,h,w]."""
    scaled = F.interpolate(truth.float(), size=geometry.content, mode="bilinear", antialias=True)
    missing = [
        padded - side for padded, side in zip(geometry.padded, geometry.content, strict=True)
    ]
    return F.avg_pool2d(F.pad(scaled, (0, missing[1], 0, missing[0])), MASK_STRIDE) >= 0.5


def summarise(rows: list[ExpressionDiagnosis], threshold: float | None = None) -> dict[str, Any]:
    """Return means by kind at ``threshold``; None uses the threshold of the best mean J."""
    curve = np.mean([row.j for row in rows], axis=0)
    best = int(curve.argmax())
    if threshold is not None:
        best = int(np.abs(np.array(THRESHOLDS) - threshold).argmin())
    kinds: dict[str, list[ExpressionDiagnosis]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)

    def means(group: list[ExpressionDiagnosis]) -> dict[str, Any]:
        return {
            "j": float(np.mean([row.j[best] for row in group])),
            "oracle_j": float(np.mean([row.oracle_j for row in group])),
            "selection_accuracy": float(np.mean([row.selected[best] for row in group])),
            "count": len(group),
        }

    return {
        "threshold": THRESHOLDS[best],
        "all": means(rows),
        "by_kind": {kind: means(kinds[kind]) for kind in sorted(kinds)},
        "j_by_threshold": dict(zip(map(str, THRESHOLDS), curve.tolist(), strict=True)),
    }


@with_error_lines
def main(
    config: Annotated[str, typer.Argument(help="Preset.")],
    checkpoint: Annotated[Path, typer.Option(help="Trained weights, .safetensors.")],
    data: Annotated[Path, typer.Option(help="Folder of a split in MeViS's layout.")],
    clip_weights: Annotated[str | None, typer.Option(help="Of the frozen CLIP part.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Default: the one of the best mean J.")
    ] = None,
    videos: Annotated[int | None, typer.Option(help="Only the first so many.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it there.")] = None,
) -> None:
    """Separate the errors of masks from those of selection, by kind of expression, over a split."""
    from rvos_deploy.export.weights import Weights, load_network
    from rvos_deploy.training.clips import training_tokenizer

    network = load_network(preset(config), Weights(checkpoint, clip_weights))
    split = read_mevis(data)
    rows = [
        row
        for video in split.videos[:videos]
        for row in diagnose(network, training_tokenizer(), video)
    ]
    record = summarise(rows, threshold)
    typer.echo(f"threshold {record['threshold']}")
    for kind, row in {**record["by_kind"], "all": record["all"]}.items():
        typer.echo(
            f"{kind:>12} {row['count']:>5}  J {row['j']:.3f}  oracle {row['oracle_j']:.3f}  "
            f"selected {row['selection_accuracy']:.3f}"
        )
    if json_file is not None:
        write_json(
            json_file,
            {
                "schema": "rvos-deploy/benchmark/selection/1",
                "command": f"python -m rvos_deploy.benchmarks.studies.selection {config} "
                f"--checkpoint {checkpoint} --clip-weights {clip_weights} --data {data}"
                + ("" if threshold is None else f" --threshold {threshold}")
                + ("" if videos is None else f" --videos {videos}"),
                **record,
                "versions": versions("torch"),
                "machine": machine(),
            },
        )


if __name__ == "__main__":
    typer.run(main)
