"""The status file: whole at any moment, read back, and never another program's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from rvos_deploy.batch import status_file
from rvos_deploy.batch.status_file import JOURNAL, STATUS, StatusFile, VideoStatus, read_status
from rvos_deploy.errors import InputError

ONE = VideoStatus(video="a.mp4", state="done", fingerprint="f", expressions=2, frames=8)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    StatusFile(tmp_path, "rvos-deploy batch").update({"a": ONE})
    again = StatusFile(tmp_path, "another")
    assert again.get("a") == ONE
    assert again.get("b") is None
    failed = VideoStatus(
        video="b.mp4", state="failed", fingerprint="g", expressions=1, error="it is empty"
    )
    again.update({"b": failed})
    assert read_status(tmp_path) == {"a": ONE, "b": failed}
    content = json.loads((tmp_path / STATUS).read_text())
    assert content["schema"] == "rvos-deploy/batch/1"
    assert content["command"] == "another"
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_a_killed_batch_leaves_the_last_whole_file(tmp_path: Path) -> None:
    StatusFile(tmp_path, "").update({"a": ONE})
    (tmp_path / f".{STATUS}.0123456789ab.part").write_text('{"schema"')
    assert StatusFile(tmp_path, "").get("a") == ONE
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_no_file_is_no_video(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"schema": "rvos-deploy/batch/2"}', '{"name": "my batch"}'],
)
def test_another_programs_file_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / STATUS).write_text(content)
    with pytest.raises(InputError, match=r"was not written by this version of batch .* move it"):
        StatusFile(tmp_path, "")
    assert (tmp_path / STATUS).read_text() == content


def test_a_state_that_is_unknown(tmp_path: Path) -> None:
    StatusFile(tmp_path, "").update({"a": ONE})
    file = tmp_path / STATUS
    file.write_text(file.read_text().replace('"done"', '"gone"'))
    with pytest.raises(InputError, match="gone"):
        read_status(tmp_path)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / STATUS).mkdir()
    with pytest.raises(InputError, match=r"batch\.json cannot be read"):
        StatusFile(tmp_path, "")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(status_file, "time", clock)
    return clock


def whole(folder: Path) -> dict[str, str]:
    """The states in the whole file."""
    videos = json.loads((folder / STATUS).read_text())["videos"]
    return {name: one["state"] for name, one in videos.items()}


def of_state(state: str) -> VideoStatus:
    return msgspec.structs.replace(ONE, state=state)


def test_the_whole_file_is_written_at_most_once_a_second(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(tmp_path, "")
    file.update({name: of_state("waiting") for name in "abc"})
    assert whole(tmp_path) == {"a": "waiting", "b": "waiting", "c": "waiting"}
    written = (tmp_path / STATUS).read_bytes()
    file.update({"a": of_state("running")})
    file.update({"a": of_state("done"), "b": of_state("running")})
    file.update({"b": of_state("failed")})
    assert not file.write_if_due()
    assert (tmp_path / STATUS).read_bytes() == written
    # What ended is on the disk nevertheless; what runs is due again in any case.
    assert {name: one.state for name, one in read_status(tmp_path).items()} == {
        "a": "done", "b": "failed", "c": "waiting",
    }  # fmt: skip
    clock.now += 1
    assert file.write_if_due()
    assert whole(tmp_path) == {"a": "done", "b": "failed", "c": "waiting"}
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]
    clock.now += 1
    assert not file.write_if_due()  # nothing changed
    file.update({"c": of_state("running")})
    file.update({"c": of_state("done")})
    file.write()  # the end
    assert whole(tmp_path)["c"] == "done"
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_a_large_file_is_written_more_rarely(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_file, "_RATE", 1000)
    file = StatusFile(tmp_path, "")
    file.update({f"video{number}": ONE for number in range(100)})
    file.update({"a": of_state("running")})
    clock.now += 5
    assert not file.write_if_due()
    clock.now += (tmp_path / STATUS).stat().st_size / 1000
    assert file.write_if_due()


def test_what_ended_is_read_after_a_kill_at_any_moment(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(tmp_path, "")
    file.update({name: of_state("waiting") for name in "abc"})
    for name in "ab":
        file.update({name: of_state("done")})
    lines = (tmp_path / JOURNAL).read_bytes()
    first = lines.index(b"\n", 1) + 1
    for length in range(first, len(lines) + 1):
        for rest in (b"", b"\0" * 8):
            (tmp_path / JOURNAL).write_bytes(
                lines[:length] + (rest if length < len(lines) else b"")
            )
            found = {name: one.state for name, one in read_status(tmp_path).items()}
            last = "done" if length >= len(lines) - (not rest) else "waiting"
            assert found == {"a": "done", "b": last, "c": "waiting"}, (length, rest)
    # A full disk cuts off a line, and later ones fit.
    (tmp_path / JOURNAL).write_bytes(lines[: first - 9] + lines[first:])
    assert [one.state for one in read_status(tmp_path).values()] == ["waiting", "done", "waiting"]
    (tmp_path / JOURNAL).write_bytes(lines)
    # The next batch takes the lines into the whole file, even if nothing is due.
    StatusFile(tmp_path, "").update({})
    assert whole(tmp_path) == {"a": "done", "b": "done", "c": "waiting"}
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


@pytest.mark.parametrize("content", ["my notes", "{}\n{}\n", '{"schema": "x"}\n'])
def test_another_programs_journal_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / JOURNAL).write_text(content)
    with pytest.raises(InputError, match=r"batch\.journal was not written by this version"):
        StatusFile(tmp_path, "")
    assert (tmp_path / JOURNAL).read_text() == content


def test_every_write_is_on_the_disk_when_it_returns(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    file = StatusFile(tmp_path, "")
    folder = tmp_path.stat().st_ino
    file.update({"a": of_state("waiting"), "b": of_state("waiting")})
    assert synced == [(tmp_path / STATUS).stat().st_ino, folder]
    journal = []
    for name in "ab":
        file.update({name: of_state("done")})
        journal.append((tmp_path / JOURNAL).stat().st_ino)
    assert synced[2:] == [journal[0], folder, journal[1]]


def test_a_disk_without_space_is_one_line(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StatusFile(tmp_path, "")
    file.update({"a": of_state("running")})

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in (lambda: file.update({"a": ONE}), file.write):
        with pytest.raises(InputError, match="cannot be written: No space left on device; free"):
            step()
    monkeypatch.undo()
    assert whole(tmp_path) == {"a": "running"}
    file.write()
    assert whole(tmp_path) == {"a": "done"}
