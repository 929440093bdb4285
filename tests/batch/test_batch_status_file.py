"""The status file: whole at any moment, read back, and never another program's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvos_deploy.batch.status_file import STATUS, StatusFile, VideoStatus, read_status
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
    assert read_status(tmp_path / STATUS) == {"a": ONE, "b": failed}
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
    assert read_status(tmp_path / STATUS) == {}


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
        read_status(file)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / STATUS).mkdir()
    with pytest.raises(InputError, match=r"batch\.json cannot be read"):
        StatusFile(tmp_path, "")
