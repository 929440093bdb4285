"""Frames: what is refused, images on a device, and frames without their image."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.video import Frame

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


class OnGpu:
    """An array that tells itself through the CUDA array interface only."""

    def __init__(self, shape: tuple[int, ...] = (4, 6, 3), typestr: str = "|u1") -> None:
        self.told = {"shape": shape, "typestr": typestr, "data": (1, False), "version": 3}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.told


class Silent:
    """An array that tells nothing before it is read."""

    def __dlpack__(self, **options: object) -> object:
        raise AssertionError("read too early")


def of_torch(image: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(image)


@pytest.mark.parametrize("make", [lambda: IMAGE, lambda: of_torch(IMAGE), OnGpu])
def test_an_image_of_any_library_tells_its_size(make: Callable[[], Any]) -> None:
    image = make()
    frame = Frame(3, 1.5, image, 0.04)
    assert (frame.index, frame.pts, frame.duration) == (3, 1.5, 0.04)
    assert (frame.height, frame.width) == (4, 6)
    assert frame.image is image
    assert "uint8[4x6x3]" in repr(frame)


def test_an_array_that_tells_nothing_is_taken_as_it_is() -> None:
    frame = Frame(0, 0.0, Silent())
    assert repr(frame) == "Frame(index=0, pts=0, image=Silent uint8[?], duration=None)"
    with pytest.raises(InputError, match="a Silent, does not tell its shape"):
        _ = frame.height


@pytest.mark.parametrize(
    "make",
    [
        lambda: OnGpu(shape=(4, 6)),
        lambda: OnGpu(shape=(4, 6, 4)),
        lambda: OnGpu(shape=(0, 6, 3)),
        lambda: OnGpu(typestr="<f4"),
        lambda: of_torch(np.zeros((4, 6, 3), np.float32)),
        lambda: of_torch(np.zeros((3, 4, 6), np.uint8)),
    ],
)
def test_other_librarys_arrays_are_checked_as_far_as_they_tell(make: Callable[[], Any]) -> None:
    image = make()
    with pytest.raises(InputError, match=r"a frame must be uint8 \[H, W, 3\] \(RGB\), found "):
        Frame(0, 0.0, image)


@pytest.mark.parametrize("image", [None, [[1]], "picture.png", 3])
def test_what_is_no_array_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match="an image must be a uint8 array, found"):
        Frame(0, 0.0, image)


def test_a_frame_without_its_image_keeps_the_rest_and_says_so() -> None:
    frame = Frame(3, 1.5, IMAGE, 0.04)
    bare = frame.without_image()
    assert (bare.index, bare.pts, bare.duration) == (3, 1.5, 0.04)
    assert (bare.height, bare.width) == (4, 6)
    assert (frame.has_image, bare.has_image) == (True, False)
    assert repr(bare) == "Frame(index=3, pts=1.5, image=not kept, duration=0.04)"
    for same in (bare, copy.copy(bare), pickle.loads(pickle.dumps(bare)), bare.without_image()):
        with pytest.raises(
            InputError, match=r"did not keep .* frame 3; .* keep_images=True"
        ) as one:
            _ = same.image
        assert len(str(one.value).splitlines()) == 1
        with pytest.raises(InputError, match="keep_images=True"):
            same.host_image()
    with pytest.raises(AttributeError, match="no attribute 'picture'"):
        _ = bare.picture  # type: ignore[attr-defined]
    assert (bare.with_image(IMAGE).image == IMAGE).all()
    assert frame.image is IMAGE


def test_an_image_on_the_host_or_that_copies_itself_can_be_read_there() -> None:
    assert Frame(0, 0.0, IMAGE).host_image() is IMAGE
    assert (Frame(0, 0.0, of_torch(IMAGE)).host_image() == IMAGE).all()
    with pytest.raises(InputError, match="is a OnGpu that cannot be read on the host; copy it"):
        Frame(0, 0.0, OnGpu()).host_image()
