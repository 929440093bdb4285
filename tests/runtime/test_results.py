"""What a result gives beside its masks: boxes, run lengths, supervision's detections, a picture."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import Frame, draw_overlay
from rvos_deploy.video.drawing.palette import colour_of

SIZE = (60, 80)
TEXTS = ("the dog", "nothing", "the ball")
NUMBERS = (0, 3, 5)  # two expressions were removed
IMAGE = np.full((*SIZE, 3), 90, np.uint8)


@pytest.fixture
def masks() -> NDArray[np.bool_]:
    masks = np.zeros((3, *SIZE), np.bool_)
    masks[0, 10:20, 30:45] = True
    masks[2, 59, 79] = True
    return masks


@pytest.fixture
def result(masks: NDArray[np.bool_]) -> FrameMasks:
    scores = np.array([0.9, 0.2, 0.6], np.float32)
    return FrameMasks(Frame(4, 0.5, IMAGE), SIZE, scores, NUMBERS, TEXTS, masks)


def test_boxes_are_those_of_pycocotools(result: FrameMasks) -> None:
    from pycocotools import mask as coco

    assert result.boxes.dtype == np.int32
    assert result.boxes.tolist() == [[30, 10, 15, 10], [0, 0, 0, 0], [79, 59, 1, 1]]
    assert np.array_equal(result.boxes, coco.toBbox(result.rle()))


def test_run_lengths_are_those_of_pycocotools(result: FrameMasks, masks: NDArray[np.bool_]) -> None:
    from pycocotools import mask as coco

    for rle, mask in zip(result.rle(), masks, strict=True):
        assert rle["counts"] == coco.encode(np.asfortranarray(mask))["counts"].decode()
        assert np.array_equal(np.asarray(coco.decode(rle)), mask)


def test_a_row_of_detections_for_each_expression_with_a_mask(
    result: FrameMasks, masks: NDArray[np.bool_]
) -> None:
    sv = pytest.importorskip("supervision")
    detections = result.to_supervision()
    assert isinstance(detections, sv.Detections)
    assert detections.xyxy.tolist() == [[30, 10, 45, 20], [79, 59, 80, 60]]
    assert np.array_equal(detections.mask, masks[[0, 2]])
    assert detections.confidence == pytest.approx([0.9, 0.6])
    assert detections.tracker_id.tolist() == detections.class_id.tolist() == [0, 5]
    assert detections["class_name"].tolist() == ["the dog", "the ball"]
    # Its own tools take them.
    assert len(detections[detections.confidence > 0.7]) == 1
    assert detections.area.tolist() == [150, 1]
    drawn = sv.MaskAnnotator().annotate(IMAGE.copy(), detections)
    assert (drawn != IMAGE).any(axis=2)[masks[0]].all()


def test_detections_of_a_frame_without_any_mask() -> None:
    sv = pytest.importorskip("supervision")
    for count in (0, 2):
        nothing = np.zeros((count, *SIZE), np.bool_)
        scores = np.zeros(count, np.float32)
        frame = FrameMasks(
            Frame(0, 0.0, IMAGE), SIZE, scores, tuple(range(count)), TEXTS[:count], nothing
        )
        assert frame.boxes.shape == (count, 4)
        assert len(frame.rle()) == count
        assert len(frame.to_supervision()) == 0
        assert sv.Detections.merge([frame.to_supervision(), sv.Detections.empty()]).is_empty()


def test_without_supervision_the_line_names_the_extra(
    result: FrameMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'rvos-deploy\[supervision\]"):
        result.to_supervision()


def test_the_overlay_has_the_colour_of_an_expressions_number(
    result: FrameMasks, masks: NDArray[np.bool_]
) -> None:
    drawn = result.overlay()
    assert drawn.shape == (*SIZE, 3)
    assert np.array_equal(IMAGE, np.full_like(IMAGE, 90))  # a copy was drawn
    assert tuple(drawn[59, 79]) == colour_of(5)
    assert np.array_equal(drawn, draw_overlay(IMAGE, masks, TEXTS, result.scores, NUMBERS))
    bare = FrameMasks(result.frame.without_image(), SIZE, result.scores, NUMBERS, TEXTS, masks)
    assert np.array_equal(bare.overlay(IMAGE), drawn)
    with pytest.raises(InputError, match="keep_images=True"):
        bare.overlay()
    with pytest.raises(InputError, match="masks must be bool"):
        bare.overlay(IMAGE[1:])


def test_a_view_of_a_bgr_image_gives_the_masks_of_its_copy(segmenter: Segmenter) -> None:
    """``frame[..., ::-1]`` has negative strides, and is what OpenCV's users push."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(3)]
    settings = StreamSettings(mode="online", size=PROBE_BOX, fallback="top1")
    found = []
    for convert in (lambda f: f[..., ::-1], lambda f: np.ascontiguousarray(f[..., ::-1])):
        with segmenter.stream(["the ball"], settings) as stream:
            found.append([r.masks for frame in frames for r in stream.push(convert(frame))])
    assert np.array_equal(found[0], found[1])
    assert np.any(found[0])
