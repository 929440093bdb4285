"""A worker by itself: what it waits for before a video counts as finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.batch import worker
from rvos_deploy.batch.jobs import Job
from rvos_deploy.batch.worker import VideoOptions, Worker
from rvos_deploy.runtime.run import RunReport


class Segmenters:
    """Options that load nothing."""

    stream = None

    def load(self) -> object:
        return object()


@pytest.mark.parametrize(("damage", "state"), [(None, "done"), ("cut off", "damaged")])
def test_a_video_is_finished_when_the_disk_has_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None, state: str
) -> None:
    steps: list[Any] = []

    def run(segmenter: object, source: str, texts: object, out: Path, **_: object) -> RunReport:
        steps.append("run")
        return RunReport(out, 3, 0.5, damage, None, "")

    monkeypatch.setattr(worker, "run", run)
    monkeypatch.setattr(worker, "sync_file_system", steps.append)
    one, job = Worker(Segmenters(), VideoOptions()), Job("a", "a.mp4", ("x",))  # type: ignore[arg-type]
    assert one.segment(job, tmp_path).state == state
    assert steps == ["run", tmp_path]

    def fail(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(worker, "sync_file_system", fail)
    outcome = one.segment(job, tmp_path)
    assert (outcome.state, outcome.error, outcome.transient) == (
        "failed", "Input/output error", True,
    )  # fmt: skip
