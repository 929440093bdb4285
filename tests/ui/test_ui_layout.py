"""What the page asks a browser for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")

from rvos_deploy.runtime.segmenter import load
from rvos_deploy.ui.page import make_page
from rvos_deploy.ui.video_session import Limits
from rvos_deploy.ui.visitors import Visitors


def test_a_camera_that_sends_more_than_it_is_asked_for_is_accepted(tmp_path: Path) -> None:
    with load("tiny", backend="onnxruntime", threads=1) as segmenter:
        page = make_page(Visitors(segmenter, Limits(), 1, tmp_path, tmp_path), 0.5, "", None)
    (camera,) = [
        found
        for one in page.config["components"]
        if (found := one["props"].get("webcam_options")) and one["props"]["label"] == "Camera"
    ]
    assert camera["mirror"] is False  # "to the left" is what the camera sees
    asked = camera["constraints"]["video"]
    assert (asked["width"]["ideal"], asked["height"]["ideal"]) == (1280, 720)
    # "ideal" binds no browser; 1920x1440 is what Gradio asks for by itself.
    assert Limits().pixels >= 1920 * 1440
