"""Run a schedule on a real Ray with workers that fail; a process of its own, called by a test.

python troubled_workers.py FOLDER
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from rvos_deploy.batch.jobs import Job
from rvos_deploy.batch.schedule import Schedule
from rvos_deploy.batch.status_file import StatusFile, VideoStatus
from rvos_deploy.batch.worker import Outcome
from rvos_deploy.errors import BackendError
from rvos_deploy.ray_cluster import Shares, connected

NAMES = ("good", "dies", "dies once", "fails once", "refused", "bug", "unusable")


class Trouble:
    """A worker of which each video shows one trouble."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def segment(self, job: Job, out: Path) -> Outcome:
        tries = self._folder / job.name
        count = len(tries.read_text()) if tries.exists() else 0
        tries.write_text("x" * (count + 1))
        match job.name:
            case "dies":
                os._exit(1)
            case "dies once" if not count:
                os._exit(1)
            case "fails once" if not count:
                return Outcome("failed", error="the disk is gone", transient=True)
            case "refused":
                return Outcome("failed", error="it is empty")
            case "bug":
                raise ZeroDivisionError("in the worker")
            case "unusable":
                return Outcome("unusable", error="no back end")
        return Outcome("done", 3, 0.5)

    def stop(self) -> None:
        pass


def main(folder: Path) -> None:
    jobs = {name: Job(name, f"{name}.mp4", ("x",)) for name in NAMES}
    record = StatusFile(folder, "")
    due = VideoStatus(video="v", state="waiting", fingerprint="", expressions=1)
    record.update(dict.fromkeys(NAMES, due))
    with connected(None, Shares(1, 1, 0.0)) as ray:
        make = partial(ray.remote(Trouble).options(num_cpus=1).remote, folder)
        Schedule(ray, make, 1, 2, record).run([jobs[name] for name in NAMES[:-1]], folder)
        try:
            Schedule(ray, make, 1, 2, record).run([jobs["unusable"], jobs["good"]], folder)
        except BackendError as error:
            refusal = error
    print(refusal)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
