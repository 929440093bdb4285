"""Frames: what is refused, images on a device, and frames without their image."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_deploy.errors import InputError
from rvos_deploy.video import Frame
from rvos_deploy.video.frames import bgr_to_rgb

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
    with pytest.raises(InputError, match=r"an image must be a NumPy array, uint8 .*, found"):
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


@pytest.mark.parametrize(
    ("image", "conversion"),
    [
        (np.full((4, 6), 9, np.uint8), "np.repeat(image[..., None], 3, axis=2)"),
        (np.full((4, 6, 1), 9, np.uint8), "np.repeat(image[..., :1], 3, axis=2)"),
        (np.full((4, 6, 2), 9, np.uint8), "np.repeat(image[..., :1], 3, axis=2)"),
        (np.full((4, 6, 4), 9, np.uint8), "image[..., :3]"),
        (np.full((3, 4, 6), 9, np.uint8), "image.transpose(1, 2, 0)"),
        (np.full((1, 4, 6, 3), 9, np.uint8), "image[0]"),
        (np.full((4, 6, 3), 9 / 255, np.float32), "(image * 255).round().astype(np.uint8)"),
        (np.full((4, 6), 9 / 255), "(np.repeat(image[..., None], 3, axis=2) * 255).round()"),
        (np.full((4, 6, 4), 9 / 255, np.float16), "(image[..., :3] * 255).round()"),
        (np.full((4, 6, 3), 9 << 8, np.uint16), "(image >> 8).astype(np.uint8)"),
        (np.full((4, 6, 3), 9, np.int64), "image.astype(np.uint8)"),
    ],
)
def test_the_line_about_another_form_holds_the_conversion(image: Any, conversion: str) -> None:
    with pytest.raises(InputError, match=r"must be uint8 \[H, W, 3\] \(RGB\), found ") as refused:
        Frame(0, 0.0, image)
    (line,) = str(refused.value).splitlines()
    assert f"found {image.dtype} {list(image.shape)}; pass {conversion}" in line
    code = line.split("; pass ")[1].split(" if its values")[0]
    converted = eval(code, {"np": np, "image": image})
    frame = Frame(0, 0.0, converted)
    assert (frame.height, frame.width) == (4, 6)
    assert np.array_equal(frame.host_image(), np.full((4, 6, 3), 9, np.uint8))


@pytest.mark.parametrize("shape", [(5, 4, 6, 3), (4, 6, 5), (7,), (0, 6, 3)])
def test_what_no_conversion_makes_an_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"(push one image at a time|it has no pixels)$"):
        Frame(0, 0.0, np.zeros(shape, np.uint8))


def test_an_image_of_pillow_is_told_its_conversion() -> None:
    image = Image.fromarray(np.full((4, 6), 9, np.uint8))
    with pytest.raises(InputError, match=r"found Image; pass .*image\.convert\('RGB'\)"):
        Frame(0, 0.0, image)  # type: ignore[arg-type]
    assert Frame(0, 0.0, np.asarray(image.convert("RGB"))).width == 6


def test_images_of_opencv() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    rgb = bgr_to_rgb(image)
    assert np.array_equal(rgb, image[..., ::-1])
    assert rgb.flags["C_CONTIGUOUS"]
    with pytest.raises(InputError, match=r"found uint8 \[4, 6\]; pass np.repeat"):
        bgr_to_rgb(image[..., 0])


def test_a_name_stays_with_its_frame() -> None:
    frame = Frame(3, 1.5, IMAGE, 0.04, "00005.jpg")
    assert frame.without_image().with_image(IMAGE).name == "00005.jpg"
    assert repr(frame).endswith("duration=0.04, name='00005.jpg')")
