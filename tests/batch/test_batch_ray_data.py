"""The callable for Ray Data: by itself, pickled, and in the example."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rvos_deploy.batch import SegmentVideos
from rvos_deploy.errors import BackendError, BundleError, InputError
from rvos_deploy.files import holding
from rvos_deploy.stream_settings import StreamSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"
SETTINGS = StreamSettings(mode="offline", size=(64, 96), fallback="top1")


@pytest.fixture
def rows(clips: Callable) -> dict[str, np.ndarray]:
    good, _ = clips(2)
    empty = good.with_name("empty.mp4")
    empty.write_bytes(b"")
    expressions = np.empty(2, dtype=object)
    expressions[:] = [np.array(["the dog", "the cat"]), np.array(["the dog"])]
    return {
        "video": np.array([str(good), str(empty)]),
        "expressions": expressions,
        "label": np.array([7, 8]),
    }


def test_a_batch_of_rows(rows: dict[str, np.ndarray], tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment = SegmentVideos(out, tiny_bundle, backend="onnxruntime", settings=SETTINGS)
    results = segment(rows)
    assert list(results["state"]) == ["done", "failed"]
    assert list(results["frames"]) == [4, 0]
    assert list(results["label"]) == [7, 8]
    assert results["error"][0] == ""
    assert "is empty (0 bytes)" in results["error"][1]
    assert list(results["folder"]) == [str(out / "clip00"), str(out / "empty")]
    masks = sorted((out / "clip00" / "masks").rglob("*.png"))
    assert len(masks) == 8
    before = [mask.read_bytes() for mask in masks]

    # As Ray sends it to an actor: without what is loaded.
    shutil.rmtree(out)
    again = pickle.loads(pickle.dumps(segment))
    assert list(again(rows)["state"]) == ["done", "failed"]
    assert [mask.read_bytes() for mask in masks] == before


def as_rows(*videos: object) -> dict[str, np.ndarray]:
    expressions = np.empty(len(videos), dtype=object)
    expressions[:] = [["the dog"]] * len(videos)
    return {"video": np.array(list(map(str, videos))), "expressions": expressions}


def test_no_video_replaces_the_results_of_another(
    clips: Callable, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.mp4"
    for clip, place in zip(clips(2), (first, second), strict=True):
        place.parent.mkdir()
        clip.rename(place)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    segment = SegmentVideos(out, tiny_bundle, backend="onnxruntime", settings=SETTINGS)

    both = segment(as_rows("a/x.mp4", second, first))
    assert list(both["state"]) == ["done", "failed", "failed"]
    assert list(both["frames"]) == [4, 0, 0]
    assert both["error"][1] == (
        f"{out / 'x'} is for the results of {first}, and {second} has the same name; rename one of "
        "them, or give each an out of its own"
    )
    written = (out / "x" / "result.json").read_bytes()

    # In another batch, of another actor, which began somewhere else.
    monkeypatch.chdir(tmp_path / "b")
    other = SegmentVideos(out, tiny_bundle, backend="onnxruntime", settings=SETTINGS)
    later = other(as_rows("x.mp4"))
    assert (later["state"][0], later["error"][0]) == ("failed", both["error"][1])
    assert (out / "x" / "result.json").read_bytes() == written
    # The same video again, by another path.
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    assert list(other(as_rows(link / "x.mp4"))["state"]) == ["done"]
    assert (out / "x" / "result.json").read_bytes() != written


def test_two_actors_do_not_write_into_one_folder(
    clips: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    (video,) = clips(1)
    out = tmp_path / "out"
    segment = SegmentVideos(out, tiny_bundle, backend="onnxruntime", settings=SETTINGS)
    results = {}
    with holding(out / video.stem, "writing into"):
        thread = threading.Thread(target=lambda: results.update(segment(as_rows(video))))
        thread.start()
        thread.join()
    assert results["state"][0] == "failed"
    assert "another process is writing into" in results["error"][0]


def test_what_is_refused(rows: dict[str, np.ndarray], tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="none"):
        SegmentVideos(tmp_path, tmp_path / "none")
    with pytest.raises(InputError, match="the column 'expressions' is missing; found video"):
        SegmentVideos(tmp_path, tiny_bundle)({"video": rows["video"]})
    with pytest.raises(BackendError, match="abacus"):
        SegmentVideos(tmp_path, tiny_bundle, backend="abacus")(rows)


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 60


@pytest.mark.slow
def test_the_example_runs(clips: Callable, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    if not (find_spec("ray") and find_spec("pandas")):
        pytest.skip("Ray or pandas is not installed")
    from pyarrow import parquet

    first, second = map(str, clips(2))
    table = {"video": [first, second, first], "expression": ["the dog", "the cat", "the cat"]}
    parquet.write_table(arrow.table(table), tmp_path / "videos.parquet")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path / "videos.parquet", out],
        env={**os.environ, "HOME": str(tmp_path)},  # Ray writes its token there
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line.strip() for line in done.stdout.splitlines() if ".mp4" in line) == [
        f"{first} done 4",
        f"{second} done 5",
    ]
    assert {len(list(folder.glob("masks/*"))) for folder in out.glob("clip00")} == {2}
    assert {len(list(folder.glob("masks/*"))) for folder in out.glob("clip01")} == {1}
