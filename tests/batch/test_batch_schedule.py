"""Which worker gets which video, with a stand-in for Ray that answers at once and in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rvos_deploy.batch.jobs import Job
from rvos_deploy.batch.schedule import Schedule
from rvos_deploy.batch.status_file import STATUS, StatusFile, VideoStatus
from rvos_deploy.batch.worker import Outcome
from rvos_deploy.errors import BackendError
from rvos_deploy.ray_cluster import Shares, count_workers, describe_lack

DONE = Outcome("done", 3, 0.5)


class StandInRay:
    """The functions of Ray that a schedule calls; every call has ended when it is waited for."""

    class exceptions:  # noqa: N801 (Ray's module)
        class RayError(Exception):
            pass

        class RayActorError(RayError):
            pass

        class RayTaskError(RayError):
            pass

    def wait(
        self, references: list[Any], timeout: float, num_returns: int = 1
    ) -> tuple[list[Any], list[Any]]:
        assert references, "Ray refuses an empty list"
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Any) -> Any:
        return reference.answer()


class StandInWorker:
    """An actor; ``answer`` gets the worker's number and the job."""

    def __init__(self, number: int, answer: Callable[[int, Job], Outcome]) -> None:
        def begin(job: Job, out: Path) -> Any:
            return Reference(lambda: answer(number, job))

        self.segment = SimpleNamespace(remote=begin)
        self.stop = SimpleNamespace(remote=lambda: None)


class Reference:
    """What Ray returns for a call."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer


class Batch:
    """Run a schedule, and remember what each worker got, and the warnings."""

    def __init__(self, folder: Path, answer: Callable[[int, Job], Outcome]) -> None:
        self.folder, self._answer = folder, answer
        self.given: list[tuple[int, str]] = []
        self.warnings: list[str] = []
        self._started = 0

    def _start(self) -> StandInWorker:
        self._started += 1
        return StandInWorker(self._started, self._note)

    def _note(self, number: int, job: Job) -> Outcome:
        self.given.append((number, job.name))
        return self._answer(number, job)

    def run(self, names: Sequence[str], workers: int = 1, retries: int = 2) -> None:
        self.status = StatusFile(self.folder, "")
        due = VideoStatus(video="v", state="waiting", fingerprint="", expressions=1)
        self.status.update(dict.fromkeys(names, due))
        schedule = Schedule(
            StandInRay(),  # type: ignore[arg-type]
            self._start,
            workers,
            retries,
            self.status,
            warn=self.warnings.append,
        )
        schedule.run([Job(name, f"{name}.mp4", ("x",)) for name in names], self.folder)

    def states(self, names: str) -> list[str]:
        return [one.state for name in names if (one := self.status.get(name)) is not None]


def test_a_worker_that_failed_for_a_reason_that_may_pass_gets_no_other_video(
    tmp_path: Path,
) -> None:
    broken: set[int] = set()

    def answer(number: int, job: Job) -> Outcome:
        """A CUDA error makes all later calls of the same process fail."""
        if job.name == "b" and number == 1:
            broken.add(number)
        if number in broken:
            return Outcome("failed", error="an illegal memory access", transient=True)
        return DONE

    batch = Batch(tmp_path, answer)
    batch.run("abcd")
    assert batch.given == [(1, "a"), (1, "b"), (2, "c"), (2, "d"), (2, "b")]
    assert batch.states("abcd") == ["done"] * 4


def test_a_worker_that_refused_a_video_gets_the_next_one(tmp_path: Path) -> None:
    def answer(number: int, job: Job) -> Outcome:
        return Outcome("failed", error="it is empty") if job.name == "a" else DONE

    batch = Batch(tmp_path, answer)
    batch.run("ab")
    assert batch.given == [(1, "a"), (1, "b")]
    assert batch.states("ab") == ["failed", "done"]


def test_a_video_is_tried_as_often_as_it_may_fail(tmp_path: Path) -> None:
    batch = Batch(tmp_path, lambda number, job: Outcome("failed", error="gone", transient=True))
    batch.run("a", retries=2)
    assert batch.given == [(1, "a"), (2, "a"), (3, "a")]
    assert batch.states("a") == ["failed"]


def test_a_worker_that_cannot_load_is_left_out_while_others_work(tmp_path: Path) -> None:
    def answer(number: int, job: Job) -> Outcome:
        return Outcome("unusable", error="out of memory") if number in (1, 3) else DONE

    batch = Batch(tmp_path, answer)
    batch.run("abcd", workers=3, retries=0)
    assert batch.states("abcd") == ["done"] * 4
    assert {number for number, _ in batch.given} <= {1, 2, 3}
    assert batch.warnings[0] == "a worker cannot start and is left out, 2 left: out of memory"
    assert all("\n" not in line for line in batch.warnings)


def test_a_batch_ends_when_no_worker_can_load(tmp_path: Path) -> None:
    batch = Batch(tmp_path, lambda number, job: Outcome("unusable", error=f"no memory {number}"))
    with pytest.raises(BackendError, match="no memory 2"):
        batch.run("abc", workers=2)
    assert len(batch.given) == 2
    assert batch.states("abc") == ["waiting"] * 3
    assert len(batch.warnings) == 1


def test_the_status_is_whole_at_the_end_and_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[None] = []

    def answer(number: int, job: Job) -> Outcome:
        if job.name == "c":
            stops.append(None)
        return DONE

    def check() -> None:
        if stops:
            raise KeyboardInterrupt

    Batch(tmp_path, answer).run("ab")
    assert (tmp_path / STATUS).read_text().count('"done"') == 2
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]
    monkeypatch.setattr("rvos_deploy.batch.schedule.stopping.check", check)
    with pytest.raises(KeyboardInterrupt):
        Batch(tmp_path, answer).run("cde", workers=2)
    text = (tmp_path / STATUS).read_text()
    assert (text.count('"done"'), text.count('"running"')) == (4, 0)
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def cluster(*machines: dict[str, float], dead: int = 0) -> Any:
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    nodes += [{"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}] * dead
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("machines", "shares", "count"),
    [
        ([{"CPU": 8.0}], (4, 0.0), 2),
        ([{"CPU": 2.0}, {"CPU": 2.0}], (4, 0.0), 0),  # no worker is spread over two machines
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}], (4, 1.0), 1),
        ([{"CPU": 8.0, "GPU": 1.0}], (2, 0.5), 2),
        ([{"CPU": 8.0}, {"GPU": 2.0}], (4, 1.0), 0),
    ],
)
def test_how_many_workers_fit(
    machines: list[dict[str, float]], shares: tuple[int, float], count: int
) -> None:
    ray, shares_ = cluster(*machines, dead=1), Shares(None, *shares)
    assert count_workers(ray, shares_) == count
    assert (describe_lack(ray, shares_) is None) == bool(count)


def test_a_cluster_without_room_is_told_in_one_line() -> None:
    ray = cluster({"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 16.0}, dead=1)
    assert describe_lack(ray, Shares(None, 4, 1.0)) == (
        "a worker needs 4 CPUs and 1 GPU, and no machine of the cluster has that (machines: 16 "
        "CPUs and 0 GPUs, 2 CPUs and 0 GPUs); nothing runs until one joins: add it, or stop this "
        "and lower --cpus or --gpus"
    )
