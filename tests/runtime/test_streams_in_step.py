"""Streams of several settings over the same frames equal streams of their own, at one pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import upsample_masks
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.networks.selection import thresholds
from rvos_deploy.runtime.decided_frame import DecidedFrame
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings

TEXTS = ["the square moving to the right", "the disc"]
SETTINGS = [
    StreamSettings("offline", size=PROBE_BOX, fallback="top1"),
    StreamSettings("online", lookahead=2, memory=3, anchors=1, size=PROBE_BOX, fallback="top1"),
    StreamSettings("online", size=PROBE_BOX, threshold=0.0),
]
Clip = NDArray[np.uint8]


def masks_of(stream: Stream, clip: Clip) -> list[NDArray[np.bool_]]:
    given = [result for frame in clip for result in stream.push(frame)]
    return [result.masks for result in [*given, *stream.flush()]]


def test_each_equals_a_stream_of_its_own(
    segmenter: Segmenter, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = []
    for settings in SETTINGS:
        with segmenter.stream(TEXTS, settings) as stream:
            alone.append(masks_of(stream, clip))
    calls = dict.fromkeys(("backbone", "frame_decoder"), 0)
    for name in calls:
        graph = segmenter._session.graphs[name]

        def counted(inputs, name=name, run=graph.run):  # type: ignore[no-untyped-def]
            calls[name] += 1
            return run(inputs)

        monkeypatch.setattr(graph, "run", counted)
    together: list[list[NDArray[np.bool_]]] = [[] for _ in SETTINGS]
    with segmenter.streams_in_step(TEXTS, SETTINGS) as streams:
        buffer = np.empty_like(clip[0])  # used again for every frame, as a decoder does
        for frame in clip:
            buffer[:] = frame
            for found, decided in zip(together, streams.push(buffer), strict=True):
                found += [result.masks for result in decided]
        for found, stream in zip(together, streams.streams, strict=True):
            found += [result.masks for result in stream.flush()]
    assert calls == {"backbone": len(clip), "frame_decoder": len(clip)}
    for found, wanted in zip(together, alone, strict=True):
        assert len(found) == len(clip)
        assert np.array_equal(found, wanted)
    assert not np.array_equal(together[0], together[1])
    with pytest.raises(InputError, match="this stream is closed"):
        streams.push(clip[0])


def test_a_render_makes_the_masks(segmenter: Segmenter, clip: Clip) -> None:
    """The default render, written by hand: every query above the threshold."""
    settings = StreamSettings("online", size=PROBE_BOX, threshold=0.5, fallback="top1")

    indices = []

    def render(frame: DecidedFrame) -> NDArray[np.bool_]:
        indices.append(frame.index)
        assert frame.scores.shape == (2, segmenter.bundle.config.num_queries)
        logits = frame.mask_logits(thresholds(frame.scores, 0.5, "top1"))
        return upsample_masks(logits, frame.geometry)

    with segmenter.stream(TEXTS, settings, render=render) as stream:
        found = masks_of(stream, clip[:3])
    assert indices == [0, 1, 2]
    with segmenter.stream(TEXTS, settings) as stream:
        assert np.array_equal(found, masks_of(stream, clip[:3]))


def test_a_stream_that_cannot_start_leaves_none_open(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = Stream.close
    monkeypatch.setattr(Stream, "close", lambda self: (closed.append(self), close(self)))
    with pytest.raises(InputError, match="masks='device' needs a back end"):
        segmenter.streams_in_step(TEXTS, [SETTINGS[0], replace(SETTINGS[0], masks="device")])
    assert len(closed) == 1
