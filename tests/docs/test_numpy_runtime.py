"""Programs that were written from docs/graphs.md alone give the runtime's masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import packaged_bundles
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.runtime.decided_frame import DecidedFrame
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

Joined = Sequence[tuple[str, int]]
Results = dict[str, NDArray[Any]]


def stream_results(
    bundle: Path,
    frames: NDArray[np.uint8],
    expressions: Joined,
    **options: Any,
) -> Results:
    """Segment the same frames by the runtime's stream."""
    results: Results = {}

    def render(decided: DecidedFrame) -> NDArray[np.bool_]:
        logits = decided.mask_logits(decided.maker.thresholds)
        results[f"{decided.index}/mask_logits"] = logits
        results[f"{decided.index}/scores"] = decided.scores
        (masks,) = decided.ops.upsample_masks(logits, decided.geometry).arrays()
        return masks.astype(np.bool_, copy=False)

    settings = StreamSettings(fallback="top1", **options)
    with (
        load(bundle, backend="onnxruntime") as segmenter,
        segmenter.stream([], settings, render=render) as stream,
    ):
        for t, frame in enumerate(frames):
            for text, first in expressions:
                if first == t:
                    stream.add_expression(text)
            (result,) = stream.push(frame)
            results[f"{t}/masks"] = result.masks
    return results


def compare(found: Results, needed: Results) -> None:
    assert found.keys() == needed.keys()
    for name, value in needed.items():
        if name.endswith("masks"):
            assert value.any(), name
            np.testing.assert_array_equal(found[name], value, name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4, err_msg=name)


def long_clip(frames: int) -> NDArray[np.uint8]:
    """The probe's clip to and fro: objects leave the window of the memory and come back."""
    clip = probe_clip()
    turns = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    return np.stack([clip[turns[t % len(turns)]] for t in range(frames)])


LATE = [(PROBE_EXPRESSIONS[0], 0), (PROBE_EXPRESSIONS[1], 2), ("Everything &amp;  that MOVES", 3)]


def test_pan2024_with_late_expressions_a_window_and_anchors(
    numpy_runtime: Callable[..., Results],
) -> None:
    bundle, clip = packaged_bundles()["tiny"], long_clip(14)
    found = numpy_runtime("numpy_pan2024", bundle, clip, LATE, memory=3, anchors=2)
    compare(found, stream_results(bundle, clip, LATE, memory=3, anchors=2))


def test_pan2024_of_a_portrait_video(numpy_runtime: Callable[..., Results]) -> None:
    bundle = packaged_bundles()["tiny"]
    clip = np.ascontiguousarray(probe_clip(3).transpose(0, 2, 1, 3)).repeat(3, 1).repeat(3, 2)
    found = numpy_runtime("numpy_pan2024", bundle, clip, LATE[:1])
    compare(found, stream_results(bundle, clip, LATE[:1]))


def test_online_refer_with_late_expressions(
    numpy_runtime: Callable[..., Results], online_refer_bundle: Path
) -> None:
    clip = long_clip(6)
    found = numpy_runtime("numpy_online_refer", online_refer_bundle, clip, LATE)
    needed = stream_results(online_refer_bundle, clip, LATE)
    compare(found, needed)
