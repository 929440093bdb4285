"""Programs that were written from docs/graphs.md alone give the runtime's masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rvos_deploy.bundle.folder import packaged_bundles
from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame, upsample_logits
from rvos_deploy.graph_io.probe import PROBE_BOX, PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.networks.pan2024.slots import SlotCues, make_tracker
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


def resized(values: NDArray[Any], end: float, size: int) -> NDArray[Any]:
    """Resize the first axis by the document's formula."""
    source, scale = len(values), end / size
    support, out = max(scale, 1), []
    for i in range(size):
        centre = (i + 0.5) * scale
        first = max(math.trunc(centre - support + 0.5), 0)
        last = min(math.trunc(centre + support + 0.5), source)
        weights = [max(0, 1 - abs((j - centre + 0.5) / support)) for j in range(first, last)]
        weights = [weight / sum(weights) for weight in weights]
        if values.dtype == np.uint8:
            k = np.array([math.floor(weight * 2**22 + 0.5) for weight in weights])
            out.append((2**21 + np.tensordot(k, values[first:last].astype(int), 1)) >> 22)
        else:
            out.append(np.tensordot(weights, values[first:last].astype(float), 1))
    return np.array(out).astype(values.dtype)


def by_columns_and_rows(
    image: NDArray[Any], ends: tuple[float, float], size: tuple[int, int]
) -> NDArray[Any]:
    wide = resized(image.swapaxes(0, 1), ends[1], size[1]).swapaxes(0, 1)
    return resized(wide, ends[0], size[0])


@pytest.mark.parametrize("display", [(90, 157), (157, 90), (31, 300), (61, 103)])
def test_the_formula_of_resizing(display: tuple[int, int]) -> None:
    random, geometry = np.random.default_rng(0), letterbox(display, PROBE_BOX)
    image = random.integers(0, 256, (*display, 3), np.uint8)
    height, width = geometry.content
    needed = resize_frame(image, geometry)[0, :height, :width]
    sides = (float(display[0]), float(display[1]))
    np.testing.assert_array_equal(by_columns_and_rows(image, sides, geometry.content), needed)
    logits = random.normal(size=[side // 4 for side in geometry.padded]).astype(np.float32)
    found = by_columns_and_rows(logits, (height / 4, width / 4), display)
    np.testing.assert_allclose(found, upsample_logits(logits, geometry), atol=1e-6)


def random_cues(frames: int) -> list[SlotCues]:
    """Objects that move, vanish, come back and swap queries, as eight queries see them."""
    random = np.random.default_rng(5)
    centre, content = random.uniform(-1, 1, (8, 2)), random.normal(size=(8, 6))
    size, cues = random.uniform(0.02, 0.3, 8), []
    for t in range(frames):
        centre = np.clip(centre + random.normal(0, 0.08, (8, 2)), -1, 1)
        size = np.clip(size * np.exp(random.normal(0, 0.3, 8)), 0.01, 0.5)
        shown = np.where((np.arange(8) * 7 + t) % 80 < 30, 0.01, size)
        position = np.column_stack([centre, np.zeros((8, 2)), shown])
        seen = content + random.normal(0, 0.1, content.shape)
        swap = random.permutation(8) if t % 3 == 0 else np.arange(8)
        score = random.uniform(0.1, 1, 8)
        cues.append(SlotCues(*(x[swap].astype(np.float32) for x in (position, seen, score))))
    return cues


def test_the_slots_of_the_document_over_a_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from numpy_pan2024 import Expression

    slots, tracker = Expression.__new__(Expression), make_tracker("mask_cues")
    slots.query, moved, unseen = None, 0, 0
    for cues in random_cues(200):
        needed = tracker.advance(cues)
        np.testing.assert_array_equal(slots.align(*(cue.astype(float) for cue in cues)), needed)
        moved += int((needed != np.arange(8)).sum())
        unseen = max(unseen, slots.unseen.max())
    assert moved > 400
    assert unseen > 20


def test_the_cosines_of_the_document() -> None:
    tracker, last = make_tracker("cosine"), None
    for cues in random_cues(50):
        direction = cues.content / np.linalg.norm(cues.content.astype(float), axis=1)[:, None]
        order = np.arange(8) if last is None else linear_sum_assignment(1 - last @ direction.T)[1]
        np.testing.assert_array_equal(tracker.advance(cues), order)
        last = direction[order]
