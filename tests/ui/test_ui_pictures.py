"""Pictures that the page shows are files of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio")
from gradio.image_utils import save_image

from rvos_deploy.ui.page import _picture


def test_a_picture_is_never_written_over_one_that_a_browser_may_be_reading(tmp_path: Path) -> None:
    image = np.full((8, 12, 3), 90, dtype=np.uint8)
    first, second = (save_image(_picture(image), str(tmp_path), "jpeg") for _ in range(2))
    assert first != second
    assert save_image(image, str(tmp_path), "jpeg") == save_image(image, str(tmp_path), "jpeg"), (
        "Gradio writes each picture anew: _picture has no reason any more"
    )
