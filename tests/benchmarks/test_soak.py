"""Test the soak: it counts resources, and a small one passes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rvos_deploy.benchmarks import soak as module
from rvos_deploy.benchmarks.soak import process_resources, soak, stream_digest
from rvos_deploy.errors import InputError
from rvos_deploy.runtime.segmenter import Segmenter, load


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: Path):  # type: ignore[no-untyped-def]
    with load(tiny_bundle) as loaded:
        yield loaded


def test_resources_are_counted(tmp_path: Path) -> None:
    before = process_resources()
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    with (tmp_path / "file").open("w"):
        thread.start()
        during = process_resources()
    end.set()
    thread.join()
    assert during.file_descriptors == before.file_descriptors + 1
    assert during.python_threads == before.python_threads + 1
    assert during.system_threads == before.system_threads + 1
    assert during.resident_bytes > 0
    assert process_resources().file_descriptors == before.file_descriptors


def test_digests_tell_settings_apart_and_repeat(segmenter: Segmenter) -> None:
    digests = [stream_digest(segmenter, number) for number in range(4)]
    assert digests == [stream_digest(segmenter, number) for number in range(4)]
    # What waits on disk instead of in memory changes nothing; the rest does.
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3
    assert stream_digest(segmenter, 3, abandoned=True) == ""


@pytest.mark.parametrize("arguments", [(200, 1, 2), (201, 0, 2), (201, 1, 1)])
def test_too_small_numbers_are_refused(
    segmenter: Segmenter, arguments: tuple[int, int, int]
) -> None:
    with pytest.raises(InputError):
        soak(segmenter, *arguments)


@pytest.mark.slow
def test_a_small_soak_passes(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    app = module.typer.Typer()
    app.command()(module.main)
    options = ["--frames", "400", "--streams", "24", "--threads", "3", "--json", str(file)]
    result = CliRunner().invoke(app, [str(tiny_bundle), *options])
    assert result.exit_code == 0, result.output
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["passed"]
    assert set(record["checks"].values()) == {True}
    assert list(record["resident_bytes_by_frames"]) == ["200", "400"]
    assert record["by_streams"][-1]["streams"] == 24
    assert record["wrong_streams_of_threads"] == []


@pytest.mark.slow
def test_a_leak_and_a_wrong_result_are_found(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, files = module.stream_digest, []

    def leaking(segmenter: Segmenter, number: int, *, abandoned: bool = False) -> str:
        if threading.current_thread() is not threading.main_thread():
            files.append((tmp_path / "leaked").open("w"))
            return "another"
        return digest(segmenter, number, abandoned=abandoned)

    monkeypatch.setattr(module, "stream_digest", leaking)
    with load(tiny_bundle) as segmenter:
        record = soak(segmenter, 201, 4, 2)
    for file in files:
        file.close()
    assert not record["passed"]
    assert not record["checks"]["no file descriptor is left"]
    assert not record["checks"]["threads give what one gives"]
    assert len(record["wrong_streams_of_threads"]) == 8
