"""The README's picture: a Moving Sprites video with its ground truth, drawn as ``run`` draws masks.

``python -m rvos_deploy.benchmarks.picture FILE.png``
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer
from PIL import Image

from rvos_deploy.sprites import WorldConfig, find_video, render
from rvos_deploy.video import draw_overlay

MOMENTS = (0, 8, 16, 23)
GAP = 6


def draw_picture(file: Path) -> None:
    """Four moments of one video with two expressions, two by two."""
    video = find_video(
        11, "valid", ("motion", "plural"), WorldConfig(height=240, width=420, emoji=False)
    )
    shown = [e for e in video.expressions if e.kind in ("motion", "plural")][:2]
    frames, masks = render(video)
    tiles = []
    for t in MOMENTS:
        meant = np.stack([masks[t, list(expression.targets)].any(axis=0) for expression in shown])
        tiles.append(draw_overlay(frames[t], meant, [expression.text for expression in shown]))
    height, width = tiles[0].shape[:2]
    canvas = np.full((2 * height + GAP, 2 * width + GAP, 3), 255, dtype=np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (place // 2) * (height + GAP), (place % 2) * (width + GAP)
        canvas[top : top + height, left : left + width] = tile
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(file, optimize=True)


if __name__ == "__main__":
    typer.run(draw_picture)
