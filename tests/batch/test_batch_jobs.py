"""Which expressions belong to which videos, where each is written, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rvos_deploy.batch.expressions_file import ExpressionsFile, Row
from rvos_deploy.batch.jobs import Job, fingerprint, make_jobs, refuse_replaced_inputs
from rvos_deploy.errors import InputError


def rows(folder: Path, *pairs: tuple[str | None, str]) -> ExpressionsFile:
    return ExpressionsFile(
        folder / "e.csv", folder, tuple(Row(video, text, "line") for video, text in pairs)
    )


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    made = []
    for name in ("a.mp4", "b.avi"):
        (tmp_path / name).write_bytes(b"x")
        made.append(str(tmp_path / name))
    (tmp_path / "c.frames").mkdir()
    return [*made, str(tmp_path / "c.frames")]


def test_names_of_a_video(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    by_path = os.path.relpath(files[0])
    for first in ("a.mp4", "a", files[0], by_path, "./a.mp4"):
        file = rows(tmp_path, (first, "x"), ("b", "y"), ("c.frames", "z"), (first, "w"))
        found = make_jobs(files, file)
        assert found.unused == 0
        assert found.jobs == (
            Job("a", files[0], ("x", "w")),
            Job("b", files[1], ("y",)),
            Job("c.frames", files[2], ("z",)),
        )


def test_every_expression_for_every_video(files: list[str], tmp_path: Path) -> None:
    found = make_jobs(files, rows(tmp_path, (None, "x"), (None, "y")))
    assert [job.expressions for job in found.jobs] == [("x", "y")] * 3


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_videos_of_the_file(tmp_path: Path) -> None:
    touch(tmp_path / "b.mp4", tmp_path / "deep" / "a.mp4")
    found = make_jobs([], rows(tmp_path, ("b.mp4", "x"), ("deep/a.mp4", "y"), ("b.mp4", "z")))
    assert found.jobs == (
        Job("b", str(tmp_path / "b.mp4"), ("x", "z")),
        Job("a", str(tmp_path / "deep/a.mp4"), ("y",)),
    )


def test_videos_of_the_file_from_its_folder_from_here_and_without_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub = tmp_path / "sub"
    touch(tmp_path / "x.mp4", tmp_path / "both.mp4", sub / "both.mp4", sub / "e.csv")
    touch(tmp_path / "deep" / "y.mp4", sub / "z.avi", sub / "e.mkv", sub / "w[1].mp4")
    touch(sub / "frames" / "0.png", sub / "%d.png")
    monkeypatch.chdir(tmp_path)
    for name, video in (
        ("x.mp4", "x.mp4"),
        ("x", "x.mp4"),
        ("deep/y", "deep/y.mp4"),
        ("both.mp4", str(sub / "both.mp4")),
        ("both", str(sub / "both.mp4")),
        ("z", str(sub / "z.avi")),
        ("e", str(sub / "e.mkv")),  # e.csv is the file itself
        ("w[1]", str(sub / "w[1].mp4")),
        ("frames", str(sub / "frames")),
        ("frames/*.png", str(sub / "frames/*.png")),
        (str(sub / "z.avi"), str(sub / "z.avi")),
    ):
        (job,) = make_jobs([], rows(sub, (name, "t"))).jobs
        assert (job.video, job.expressions) == (video, ("t",))
    # Several spellings of one video.
    two = (("both.mp4", "p"), ("both", "q"), ("../sub/both.mp4", "r"), (None, "s"))
    assert make_jobs([], rows(sub, *two)).jobs == (
        Job("both", str(sub / "both.mp4"), ("p", "q", "r", "s")),
    )


def test_names_of_the_file_that_lead_nowhere_or_to_several_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub, here = tmp_path / "sub", tmp_path / "here"
    touch(sub / "x.mp4", sub / "x.avi", here / "z.mp4")
    monkeypatch.chdir(here)
    (sub / "z.mp4").symlink_to(tmp_path / "none")  # a link that leads nowhere is no video
    (job,) = make_jobs([], rows(sub, ("z.mp4", "t"))).jobs
    assert job.video == "z.mp4"
    with pytest.raises(InputError, match=r"names v{999}, which is neither"):
        make_jobs([], rows(sub, ("v" * 999, "t")))
    with pytest.raises(
        InputError, match=r"e\.csv names y\.mp4 \(and 1 more\), which is neither in"
    ):
        make_jobs([], rows(sub, ("y.mp4", "t"), ("x.mp4", "t"), ("v", "t")))
    with pytest.raises(InputError, match=r"'x' of .* may be .*x\.avi or .*x\.mp4; write it with"):
        make_jobs([], rows(sub, ("x", "t")))
    with pytest.raises(InputError, match="may have no end"):
        make_jobs([], rows(sub, ("rtsp://host/live", "t")))


def test_links_to_one_file_are_several_videos(tmp_path: Path) -> None:
    """As in Hugging Face's cache, or in git-annex."""
    blob, first, second = (tmp_path / name for name in ("blob", "a.mp4", "b.mp4"))
    touch(blob)
    for link in (first, second):
        link.symlink_to(blob)
    for names in (("a.mp4", "b.mp4"), (str(first), str(second)), ("a", "b")):
        file = rows(tmp_path, (names[0], "x"), (names[1], "y"))
        expected = (Job("a", str(first), ("x",)), Job("b", str(second), ("y",)))
        for given in ([str(first), str(second)], []):
            assert make_jobs(given, file).jobs == expected
    # The target of one link is its name, too.
    assert make_jobs([str(first)], rows(tmp_path, ("blob", "x"))).jobs[0].expressions == ("x",)
    with pytest.raises(InputError, match=r"'blob' of the expressions may be .*a\.mp4 or .*b\.mp4"):
        make_jobs([str(first), str(second)], rows(tmp_path, ("blob", "x")))


def test_some_videos_of_the_file(files: list[str], tmp_path: Path) -> None:
    found = make_jobs(files[:1], rows(tmp_path, ("a", "x"), ("b", "y"), ("other", "z")))
    assert found.jobs == (Job("a", files[0], ("x",)),)
    assert found.unused == 2


@pytest.mark.parametrize(
    ("videos", "found"),
    [
        (("x/a.mp4", "y/a.mp4"), "x/a.mp4 and y/a.mp4 would both be written into 'a'"),
        (("a.mp4", "a.avi"), "a.mp4 and a.avi would both"),
        (("a.mp4", "A.mp4"), "a.mp4 and A.mp4 would both"),  # some file systems ignore case
        (("a.mp4", "a.mp4"), "a.mp4 and a.mp4 would both"),
        (("batch.json.mp4",), "the status file and batch.json.mp4 would both"),
        (("batch.journal.mp4",), "the status file and batch.journal.mp4 would both"),
        ((".mp4",), "gives no name"),
        (("-",), "may have no end; .* use 'rvos-deploy run'"),
        (("rtsp://host/live",), "may have no end"),
        ((), "no video given"),
    ],
)
def test_refused_videos(tmp_path: Path, videos: tuple[str, ...], found: str) -> None:
    with pytest.raises(InputError, match=found):
        make_jobs(videos, rows(tmp_path, (None, "x")))


def test_a_video_without_an_expression(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"e\.csv has no expression for .*b\.avi; .* 'b'"):
        make_jobs(files, rows(tmp_path, ("a", "x")))


def test_no_output_replaces_an_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    for name in ("clip.mp4", "a/overlay.mp4", "batch.json", "batch.journal"):
        (out / name).write_bytes(b"x")

    def check(video: Path, *others: Path) -> None:
        jobs = [Job("a", str(tmp_path / "a.mp4"), ("x",)), Job(video.stem, str(video), ("x",))]
        refuse_replaced_inputs(jobs, others, out)

    check(out / "clip.mp4")  # beside the folders of the videos
    link = tmp_path / "link.mp4"
    link.symlink_to(out / "a" / "overlay.mp4")
    # An output of the first video is the input of the second: no run could see it.
    for video in (out / "a" / "overlay.mp4", link, out / "a", out):
        with pytest.raises(InputError, match="its output would replace it"):
            check(video)
    with pytest.raises(InputError, match=r"batch\.json is an input of this command"):
        check(out / "clip.mp4", out / "batch.json")
    with pytest.raises(InputError, match=r"batch\.journal is an input of this command"):
        check(out / "clip.mp4", out / "batch.journal")


def test_what_makes_a_video_due_again(tmp_path: Path) -> None:
    video, frames = tmp_path / "a.mp4", tmp_path / "frames"
    frames.mkdir()
    for path in (video, frames / "0.png", frames / "1.png"):
        path.write_bytes(b"x")
    for source, file in ((video, video), (frames, frames / "1.png")):
        job = Job("a", str(source), ("x",))
        first = fingerprint(job, "settings")
        assert fingerprint(job, "settings") == first
        assert fingerprint(job, "other") != first
        assert fingerprint(Job("a", str(source), ("y",)), "settings") != first
        os.utime(file, ns=(0, 0))
        assert fingerprint(job, "settings") != first
    (frames / "1.png").unlink()
    assert fingerprint(job, "settings") != first
