"""What a command reads must not be what it replaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rvos_deploy.errors import InputError
from rvos_deploy.overlap import refuse_overlap, source_files


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "films" / "film.mp4"
    path.parent.mkdir()
    path.write_bytes(b"film")
    return path


def test_the_same_file_by_any_name(film: Path, tmp_path: Path) -> None:
    link, hard = tmp_path / "link.mp4", tmp_path / "hard.mp4"
    link.symlink_to(film)
    os.link(film, hard)
    folder = tmp_path / "linked"
    folder.symlink_to(film.parent)
    for other in (film, link, hard, folder / "film.mp4", film.parent / ".." / "films" / "film.mp4"):
        for pair in ((film, other), (other, film)):
            with pytest.raises(InputError, match="an input of this command, and its output would"):
                refuse_overlap([pair[0]], [pair[1]])


def test_a_folder_that_holds_an_input_and_a_file_inside_an_input(film: Path) -> None:
    for read, replaced in ((film, film.parent), (film.parent, film), (film.parent, film.parent)):
        with pytest.raises(InputError, match="choose another place for the output"):
            refuse_overlap([read], [replaced])


def test_what_is_not_there_cannot_be_lost(film: Path, tmp_path: Path) -> None:
    refuse_overlap([film.parent, film], [film.with_name("new.json"), tmp_path / "out"])
    refuse_overlap([tmp_path / "none"], [film])
    refuse_overlap([film], [])


def test_files_that_a_source_may_read(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        (tmp_path / f"{number:05d}.png").touch()
    pictures = sorted(tmp_path.glob("*.png"))
    for source, expected in {
        str(film): [film],
        f"file:{film}": [film],
        f"concat:{film}|{pictures[0]}": [film, pictures[0]],
        f"subfile,,start,0,end,0,,:{film}": [film],
        str(tmp_path): pictures,
        str(tmp_path / "%05d.png"): pictures,
        str(tmp_path / "*.png"): pictures,
        str(tmp_path.parent / f"{tmp_path.name}*" / "*.png"): pictures,
        "rtsp://host/x": [],
        "x" * 5000: [],
        "": [],
    }.items():
        assert {*source_files(source)} == {*expected}, source
    monkeypatch.chdir(film.parent)
    assert source_files("film.mp4") == [Path("film.mp4")]
