"""Results carry their frames: times always, images where the stream keeps them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.graph_io.tensors import Tensor
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.runtime.stream import Stream
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame

Clip = NDArray[np.uint8]
TEXT = "the disc"
MODES: list[dict[str, object]] = [
    {"mode": "online"},
    {"mode": "online", "lookahead": 2},
    {"mode": "offline"},
    {"mode": "online", "lookahead": 2, "mask_budget": 0},
    {"mode": "offline", "mask_budget": 0},
]


def settings(**changes: object) -> StreamSettings:
    return StreamSettings(**{"size": PROBE_BOX, "fallback": "top1", **changes})  # type: ignore[arg-type]


def timed(clip: Clip) -> list[Frame]:
    """Numbers with gaps, times that do not begin at 0, a duration that is unknown."""
    return [
        Frame(10 + 2 * n, 5.5 + 0.04 * n, image, 0.04 if n else None)
        for n, image in enumerate(clip)
    ]


def push_all(stream: Stream, frames: list[Any]) -> list[FrameMasks]:
    return [r for frame in frames for r in stream.push(frame)] + list(stream.flush())


@pytest.mark.parametrize("changes", MODES)
@pytest.mark.parametrize("keep", [False, True])
def test_a_result_carries_its_frame(
    segmenter: Segmenter, clip: Clip, changes: dict[str, object], keep: bool
) -> None:
    frames = timed(clip[:4])
    with segmenter.stream([TEXT], settings(**changes), keep_images=keep) as stream:
        results = push_all(stream, frames)
    assert len(results) == len(frames)
    for frame, result in zip(frames, results, strict=True):
        found = result.frame
        assert (found.index, found.pts, found.duration) == (frame.index, frame.pts, frame.duration)
        assert (result.index, result.pts) == (frame.index, frame.pts)
        assert (found.height, found.width) == result.size == clip.shape[1:3]
        assert found.has_image == keep
        if keep:
            assert (found.host_image() == frame.image).all()
            spilled = stream.settings.mask_budget == 0
            assert (found.image is frame.image) != spilled
        else:
            with pytest.raises(InputError, match="keep_images=True"):
                _ = found.image


def test_a_bare_image_has_a_frame_too(segmenter: Segmenter, clip: Clip) -> None:
    with segmenter.stream([TEXT], settings(), keep_images=True) as stream:
        results = push_all(stream, list(clip[:2]))
    assert [(r.frame.index, r.frame.pts, r.frame.duration) for r in results] == [
        (0, 0.0, None),
        (1, 1.0, None),
    ]
    assert (results[1].frame.image == clip[1]).all()


def test_a_frame_without_expressions_comes_back_with_its_image(
    segmenter: Segmenter, clip: Clip
) -> None:
    with segmenter.stream([], settings(), keep_images=True) as stream:
        (result,) = push_all(stream, [Frame(4, 2.0, clip[0])])
    assert result.masks.shape[0] == 0
    assert (result.frame.image == clip[0]).all()


@pytest.mark.parametrize("keep", [False, True])
def test_a_stream_holds_an_image_only_if_it_keeps_images(
    segmenter: Segmenter, clip: Clip, keep: bool
) -> None:
    with segmenter.stream([TEXT], settings(mode="offline"), keep_images=keep) as stream:
        image = clip[0].copy()
        held = weakref.ref(image)
        frame = Frame(0, 0.0, image)
        stream.push(frame)
        stream.push(Frame(1, 1.0, clip[1]))
        del image, frame
        gc.collect()
        assert (held() is not None) == keep
    gc.collect()
    assert held() is None


def test_images_wait_in_the_one_store_within_its_budget(segmenter: Segmenter, clip: Clip) -> None:
    """What is kept for the masks and the images count together; the rest goes to one file."""
    image_bytes = clip[0].nbytes

    def held(budget: int, keep: bool) -> tuple[int, int]:
        one = settings(mode="offline", mask_budget=budget)
        with segmenter.stream([TEXT], one, keep_images=keep) as stream:
            for frame in clip[:4]:
                stream.push(frame)
            _ = stream.add_expression("the square")  # the frame in hand is settled now
            return stream._store.bytes_in_memory, stream._store.bytes_on_disk

    features, _ = held(2**30, keep=False)
    assert held(2**30, keep=True) == (features + 4 * image_bytes, 0)
    assert held(0, keep=True) == (0, features + 4 * image_bytes)
    budget = (features + 4 * image_bytes) // 2
    in_memory, on_disk = held(budget, keep=True)
    assert budget - max(image_bytes, features // 4) < in_memory <= budget
    assert in_memory + on_disk == features + 4 * image_bytes


class OnDevice:
    """Another library's array on a device."""

    def __init__(self, array: Clip) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        told = {"shape": self.array.shape, "typestr": "|u1"}
        return {**told, "data": (self.array.ctypes.data, False), "version": 3}


class Borrowed(OnDevice):
    """It, as a back end on that device reads it; counts its copies to the host."""

    copies = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Clip:
        Borrowed.copies += 1
        return self.array.copy()


@pytest.fixture
def device_frames(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the back end borrow such arrays; like ONNX Runtime's, it resizes them on the host."""

    def borrow(array: object) -> Tensor:
        assert isinstance(array, OnDevice)
        return Borrowed(array.array)

    monkeypatch.setattr(segmenter._session.ops, "from_dlpack", borrow)
    monkeypatch.setattr(Borrowed, "copies", 0)


@pytest.mark.usefixtures("device_frames")
@pytest.mark.parametrize("changes", MODES)
@pytest.mark.parametrize("keep", [False, True])
def test_a_frame_on_a_device_keeps_its_time_and_stays_there(
    segmenter: Segmenter, clip: Clip, changes: dict[str, object], keep: bool
) -> None:
    host = timed(clip[:3])
    device = [Frame(f.index, f.pts, OnDevice(f.host_image()), f.duration) for f in host]
    with segmenter.stream([TEXT], settings(**changes)) as stream:
        truth = push_all(stream, host)
    with segmenter.stream([TEXT], settings(**changes), keep_images=keep) as stream:
        results = push_all(stream, device)
    spilled = keep and stream.settings.mask_budget == 0
    resized = len(device)
    assert Borrowed.copies == resized + (len(device) if spilled else 0)
    for frame, expected, result in zip(host, truth, results, strict=True):
        found = result.frame
        assert (found.index, found.pts, found.duration) == (frame.index, frame.pts, frame.duration)
        assert (result.masks == expected.masks).all()
        assert found.has_image == keep
        if keep:
            assert isinstance(found.image, np.ndarray if spilled else OnDevice)
            assert (found.host_image() == frame.image).all()


@pytest.mark.usefixtures("device_frames")
def test_an_array_that_tells_its_shape_late_is_checked_by_the_stream(segmenter: Segmenter) -> None:
    class Late(OnDevice):
        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            return {}

    with (
        segmenter.stream([TEXT], settings()) as stream,
        pytest.raises(InputError, match=r"a frame must be uint8 \[H, W, 3\]"),
    ):
        stream.push(Frame(0, 0.0, Late(np.zeros((4, 6), np.uint8))))
