"""Check a bundle: its files, and one frame by every back end of the CPU."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.datasets.moving_sprites import sample_video
from rvos_deploy.doctor.outcome import Outcome, failed, passed
from rvos_deploy.runtime.backends.registry import installed_cpu_backends
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.video import read_video

EXPRESSION = "the star that moves to the left"
PIXELS = 0.001
"""Share of the pixels of a mask that may differ between back ends: rounding at an edge."""


def bundle_files(path: str | Path) -> Outcome:
    """Hash every file of a bundle, and count its parity checks."""
    bundle = open_bundle(path)
    bundle.check_files()
    checks = bundle.manifest.parity.checks
    wrong = sum(not check.passed for check in checks)
    found = f"{path}: {bundle.config.name}, {len(bundle.graphs)} graphs, every hash is right"
    if wrong:
        return failed(
            f"{found}, but {wrong} of {len(checks)} parity checks failed", "export it again"
        )
    return passed(f"{found}, {len(checks)} parity checks of its export passed")


def one_frame(path: str | Path) -> Outcome:
    """Segment one frame by every installed back end of the CPU, and compare their masks."""
    names = installed_cpu_backends()
    if not names:
        return failed("no back end is installed", "pip install 'rvos-deploy[cpu]'")
    with tempfile.TemporaryDirectory(prefix="rvos-deploy-") as folder:
        video = Path(folder, "sample.mp4")
        sample_video(video, seed=0, frames=8)
        image = next(iter(read_video(video))).host_image()
    masks: dict[str, NDArray[np.bool_]] = {}
    words = []
    for name in names:
        started = time.perf_counter()
        masks[name] = _masks(path, name, image)
        words.append(f"{name} {time.perf_counter() - started:.1f} s with loading")
    first = masks[names[0]]
    for name in names[1:]:
        share = float((masks[name] != first).mean())
        if share > PIXELS:
            return failed(
                f"masks of {name} and {names[0]} differ in {share:.2%} of the pixels",
                f"rvos-deploy verify {path} --backend {name}",
            )
    return passed(f"one frame by {', '.join(words)}" + ("; equal masks" if len(names) > 1 else ""))


def _masks(path: str | Path, backend: str, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    # top1 gives a mask even where the network is sure of nothing.
    settings = StreamSettings(fallback="top1")
    with load(path, backend=backend) as segmenter, segmenter.stream([EXPRESSION], settings) as live:
        results = [*live.push(image), *live.flush()]
        return results[0].masks
