"""How many workers there are, and what each gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.batch.run_batch import BatchOptions, describe_settings
from rvos_deploy.batch.sinks import batch_sinks
from rvos_deploy.batch.worker import VideoOptions
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import InputError
from rvos_deploy.ray_cluster import Shares, choose_shares
from rvos_deploy.runtime.segmenter_options import SegmenterOptions, plan_segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video.sources.options import SourceOptions


@pytest.mark.parametrize(
    ("backend", "device", "gpus", "share"),
    [
        ("auto", "auto", None, 0.0),
        ("onnxruntime", "cpu", None, 0.0),
        ("onnxruntime", "cuda", None, 1.0),
        ("tensorrt", "auto", None, 1.0),
        ("tensorrt-rtx", "auto", 0.5, 0.5),
        ("auto", "auto", 2.0, 2.0),
    ],
)
def test_shares_of_gpus(backend: str, device: str, gpus: float | None, share: float) -> None:
    assert choose_shares(3, 2, gpus, backend, device) == Shares(3, 2, share)


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        ("cuda:1", None, "write --device cuda"),
        ("cuda", 0.0, "give --gpus 1"),
        ("cuda", 1.5, "neither a whole number nor below 1"),
    ],
)
def test_refused_shares(device: str, gpus: float | None, found: str) -> None:
    with pytest.raises(InputError, match=found):
        choose_shares(None, None, gpus, "onnxruntime", device)


def test_workers_share_cores_and_memory() -> None:
    cores = usable_cores()
    assert choose_shares(None, None, None, "auto", "auto") == Shares(None, min(4, cores), 0.0)
    settings = StreamSettings(mode="offline", mask_budget=2**30)
    one, many = (plan_segmenter(Path("b"), "auto", "cpu", n, settings) for n in (cores, 1))
    assert (one.threads, many.threads) == (cores, 1)
    assert one.stream.mask_budget == 2**30
    assert many.stream.mask_budget == max(2**30 // cores, 64 * 2**20)


def test_sinks_of_every_video() -> None:
    assert batch_sinks(("masks", "json")) == ("masks", "json")
    assert batch_sinks(("alpha=vp9", "rle")) == ("alpha=vp9", "rle", "json")
    for shared in ("rle=-", "mpegts=udp://127.0.0.1:9", "mpegts=-"):
        with pytest.raises(InputError, match=f"'{shared}' is one place for all videos"):
            batch_sinks(("masks", shared))


@pytest.mark.parametrize(
    ("segmenter", "videos", "repeated"),
    [
        ({"threads": 3, "stream": StreamSettings(mask_budget=7)}, {"command": "x"}, False),
        ({}, {"folder": "/elsewhere"}, False),
        ({}, {"sinks": ("masks", "json")}, True),
        ({}, {"reading": SourceOptions(stride="2f")}, True),
        ({}, {"max_frames": 3}, True),
        ({"precision_hint": "bf16"}, {}, True),
        ({"backend": "openvino"}, {}, True),
        ({"stream": StreamSettings(lookahead=1)}, {}, True),
    ],
)
def test_what_makes_videos_due_again(
    segmenter: dict[str, Any], videos: dict[str, Any], repeated: bool, tiny_bundle: Path
) -> None:
    def text(segmenter: dict[str, Any], videos: dict[str, Any]) -> str:
        loading = SegmenterOptions("b", **{"stream": StreamSettings(), **segmenter})
        shares = Shares(None, 1, 0.0)
        return describe_settings(BatchOptions(loading, VideoOptions(**videos), shares), tiny_bundle)

    assert (text(segmenter, videos) != text({}, {})) is repeated
