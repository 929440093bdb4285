"""Files that are complete or absent, whatever stands at their place."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rvos_deploy import files
from rvos_deploy.errors import InputError
from rvos_deploy.files import (
    check_output_file,
    create_temporary,
    discard,
    discard_all,
    discard_stale,
    locked,
    made_folder,
    read_regular_file,
    replacing,
    replacing_folder,
    write_text,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    file = tmp_path / ("ö" * 125 + ".json")
    write_text(file, "whole")
    assert file.read_text() == "whole"
    assert len(names(tmp_path)) == 1


def write_half(path: Path) -> None:
    path.write_text("half")
    raise LookupError


def test_a_failure_leaves_the_file_before_and_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("before")
    for target in (file, tmp_path / "new" / "deep" / "a.json"):
        with pytest.raises(LookupError), writing(target) as temporary:
            write_half(temporary)
    assert names(tmp_path) == ["a.json"]
    assert file.read_text() == "before"


def test_a_planted_symlink_is_replaced_never_followed(tmp_path: Path) -> None:
    victim, place = tmp_path / "victim", tmp_path / "mask.png"
    victim.write_text("mine")
    place.symlink_to(victim)
    with replacing(place) as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "mine"
    assert place.read_text() == "new"
    assert not place.is_symlink()


def test_of_a_symlink_that_the_user_named_the_target_is_replaced(tmp_path: Path) -> None:
    target, link, dangling = tmp_path / "target", tmp_path / "link", tmp_path / "dangling"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "folder" / "new")
    for path in (link, dangling):
        write_text(path, "after")
        assert path.is_symlink()
        assert path.read_text() == "after"
    assert target.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["dangling", "folder", "link", "target"]


def test_a_loop_of_symlinks_and_a_folder_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, why in ((loop, "symbolic links"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"{path.name} cannot be written: .*{why}"):
            write_text(path, "x")
    assert loop.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make device nodes")
def test_a_device_is_written_into(tmp_path: Path) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | 0o020000, os.makedev(1, 3))
    except OSError:
        pytest.skip("device nodes cannot be made here")
    before = null.stat()
    write_text(null, "text")
    assert (null.stat().st_ino, null.stat().st_rdev) == (before.st_ino, before.st_rdev)
    assert names(tmp_path) == ["null"]


def test_a_fifo_is_written_into(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_text()))
    reader.start()
    write_text(fifo, "text")
    reader.join()
    assert found == ["text"]
    assert names(tmp_path) == ["fifo"]
    assert fifo.is_fifo()


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("mode", ["w", "a"])
def test_standard_output_in_a_file_is_continued(tmp_path: Path, path: str, mode: str) -> None:
    if not Path(path).exists():
        pytest.skip("this system has no such name")
    code = (
        "import sys; from pathlib import Path; from rvos_deploy.files import write_text\n"
        "print('first'); write_text(Path(sys.argv[1]), 'second\\n'); print('third')"
    )
    output = tmp_path / "output"
    output.write_text("earlier\n")
    with output.open(mode) as file:
        subprocess.run([sys.executable, "-c", code, path], stdout=file, check=True)
    start = "earlier\n" if mode == "a" else ""
    assert output.read_text() == f"{start}first\nsecond\nthird\n"
    assert names(tmp_path) == ["output"]


def test_standard_output_in_a_pipe() -> None:
    code = "from pathlib import Path; from rvos_deploy.files import write_text\n"
    code += "write_text(Path('/dev/stdout'), 'text')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "text"


def test_a_file_that_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_output_file(tmp_path)
    with pytest.raises(InputError, match=r"cannot be written: .*file"):
        check_output_file(file / "a.json")
    for fine in (file, tmp_path / "new" / "a.json", Path("/dev/null"), Path("relative.json")):
        check_output_file(fine)
    assert names(tmp_path) == ["file"]


def test_stale_temporaries_go_and_others_stay(tmp_path: Path) -> None:
    stale = tmp_path / ".result.json.0123456789ab.part"
    others = [".result.json.part", ".other.json.0123456789ab.part", "result.json", ".film.mp4.part"]
    for path in (stale, *(tmp_path / name for name in others)):
        path.touch()
    ours = create_temporary(tmp_path / "result.json")
    discard_stale(tmp_path, "result.json")
    assert names(tmp_path) == sorted([*others, ours.name])
    discard(ours)


def test_all_temporaries_go_when_the_process_ends_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        create_temporary(tmp_path / name)
    (files.create_temporary_folder(tmp_path / "folder") / "inside").touch()
    discard_all()
    assert names(tmp_path) == []


def test_a_folder_is_held_by_one_thread_which_may_hold_it_again(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with locked(tmp_path, "writing into"):
                pass
        except InputError as error:
            refused.append(str(error))

    def beside() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with locked(tmp_path, "writing into"), locked(tmp_path, "writing into"):
        beside()
    assert refused == [
        f"another process is writing into {tmp_path}; wait for it, or choose another folder"
    ]
    beside()
    assert len(refused) == 1
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_used_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS gives EBADF for a folder that is open for reading."""

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", no_locks)
    stale = tmp_path / ".b.0123456789ab.part"
    stale.mkdir()
    with locked(tmp_path, "writing into"), replacing_folder(tmp_path / "b"):
        pass
    assert names(tmp_path) == [stale.name, "b"], "whether it is in use cannot be known"


def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), made_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert names(tmp_path) == []
    with made_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert names(tmp_path / "a") == ["kept"]


@pytest.mark.parametrize("atomic", [True, False], ids=["exchanged", "two renames"])
def test_a_folder_is_replaced_only_where_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    if not atomic:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    target = tmp_path / "bundle"
    link = tmp_path / "link"
    link.symlink_to(target)
    with replacing_folder(link) as folder:
        (folder / "first").touch()
    with pytest.raises(OSError, match="not empty"), replacing_folder(target) as folder:
        (folder / "second").touch()
    assert names(target) == ["first"]
    with replacing_folder(target, overwrite=True) as folder:
        (folder / "second").touch()
    assert names(target) == ["second"]
    assert link.is_symlink()
    assert names(tmp_path) == ["bundle", "link"]


def test_a_folder_comes_back_when_the_new_one_cannot_be_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "before").touch()
    with (
        pytest.raises(OSError, match="No such file"),
        replacing_folder(target, overwrite=True) as folder,
    ):
        folder.rmdir()
    assert names(target) == ["before"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="nothing says who may write a file")
def test_a_private_file_is_one_that_nobody_else_can_have_written(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"mine")
    for mode, private in ((0o600, True), (0o644, True), (0o664, False), (0o602, False)):
        file.chmod(mode)
        assert read_regular_file(file, 10) == b"mine"
        if private:
            assert read_regular_file(file, 10, private=True) == b"mine"
        else:
            with pytest.raises(PermissionError, match="another user may have written it"):
                read_regular_file(file, 10, private=True)
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 12345, -1)
        with pytest.raises(PermissionError, match="another user may have written it"):
            read_regular_file(file, 10, private=True)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
@pytest.mark.parametrize("moment", ["while it is locked", "before it is opened", "before the lock"])
def test_a_new_folder_that_another_process_takes_for_a_stale_one_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the creation of a folder and its lock, it looks like one of a dead process."""
    import fcntl

    lock, flock, taken = files._lock, fcntl.flock, []

    def lock_late(folder: Path, *, only: bool = False) -> int | None:
        if not taken and not only:
            taken.append(folder)
            if moment == "before it is opened":
                folder.rmdir()
            elif moment == "while it is locked":
                with locked(folder, "removing"):
                    return lock(folder, only=only)
        return lock(folder, only=only)

    def flock_late(descriptor: int, operation: int) -> None:
        if moment == "before the lock" and taken and taken[0].exists():
            taken[0].rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(files, "_lock", lock_late)
    monkeypatch.setattr(fcntl, "flock", flock_late)
    folder = files.create_temporary_folder(tmp_path / "work")
    monkeypatch.undo()
    assert len(taken) == 1
    assert folder != taken[0]
    assert names(tmp_path) == [folder.name]
    assert lock(folder, only=True) is None  # it is ours, so nobody removes it
    discard(folder)
    assert taken[0] not in files._temporaries


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
def test_folders_that_are_always_taken_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_lock", lambda folder, *, only=False: None)
    with pytest.raises(OSError, match="removed each new temporary folder"):
        files.create_temporary_folder(tmp_path / "work")
    assert not names(tmp_path)


def test_a_durable_file_is_on_the_disk_before_its_name_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, steps, sync = tmp_path / "a.json", [], files.sync

    def note(path: Path) -> None:
        steps.append((path == tmp_path, file.read_text()))
        sync(path)

    file.write_text("before")
    monkeypatch.setattr(files, "sync", note)
    with replacing(file, durable=True) as temporary:
        temporary.write_text("after")
    assert steps == [(False, "before"), (True, "after")]
    with replacing(file) as temporary:
        temporary.write_text("later")
    assert len(steps) == 2


def test_waiting_for_the_disk_ignores_only_file_systems_that_cannot_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.sync_file_system(tmp_path)
    for number, passes in ((errno.EINVAL, True), (errno.EIO, False)):

        def fail(descriptor: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        if passes:
            files.sync(tmp_path)
        else:
            with pytest.raises(OSError, match="Input/output error"):
                files.sync(tmp_path)


def test_what_may_not_be_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    files.sync(tmp_path)
    files.sync_file_system(tmp_path)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        files.sync(tmp_path / "none")
    if sys.platform.startswith("linux"):
        with pytest.raises(FileNotFoundError):
            files.sync_file_system(tmp_path / "none")
