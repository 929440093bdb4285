"""Lock the folder of a run, and replace the files of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rvos_deploy.errors import InputError
from rvos_deploy.files import (
    cannot_write,
    create_temporary_folder,
    discard,
    discard_stale,
    holding,
    remove_empty,
)
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.video.sinks.masks import MASKS
from rvos_deploy.video.sinks.overlay import OVERLAY
from rvos_deploy.video.sinks.result_file import RESULT, is_result_file

_EARLIER = "earlier"


def check_run_folder(out: Path, inputs: list[Path]) -> None:
    """Refuse a folder whose files a run must not replace; change nothing.

    Args:
        out: the folder of the run, which need not exist.
        inputs: files and folders that the run reads.

    Raises:
        InputError: ``out`` is a file, another program wrote ``result.json``, masks would be written
            through a symlink, or an input would be replaced.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder for --out")
    for folder in (out / MASKS, *_mask_folders(out)):
        if folder.is_symlink():
            raise InputError(
                f"{folder} is a symlink, and masks are not written through one; remove it, or "
                "choose another --out"
            )
    result = out / RESULT
    if result.is_dir() or (result.is_file() and not is_result_file(result)):
        raise InputError(
            f"{result} was not written by a run, so it is not replaced; move it, or choose another "
            "--out"
        )
    refuse_overlap(inputs, earlier_files(out))


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Make the folder and lock it for one run; remove the folder if it stays empty.

    Raises:
        InputError: the folder cannot be made, or another run has locked it.
    """
    with holding(out, "writing into"):
        _discard_stale(out)
        yield


def earlier_files(out: Path) -> list[Path]:
    """List the files of an earlier run, and no others."""
    masks = [
        file
        for folder in _mask_folders(out)
        for file in folder.glob("*.png")
        if file.stem.isdecimal()
    ]
    return masks + [out / name for name in (OVERLAY, RESULT) if (out / name).is_file()]


@contextmanager
def replacing_earlier_files(out: Path) -> Iterator[None]:
    """Move an earlier run's files aside; delete them after the block, or restore them on error.

    Raises:
        InputError: a file cannot be moved.
    """
    files = earlier_files(out)
    if not files:
        yield
        return
    try:
        aside = create_temporary_folder(out / _EARLIER)
    except OSError as error:
        raise InputError(cannot_write(out, error)) from error
    with ExitStack() as undo:
        undo.callback(remove_empty, aside)
        try:
            for number, file in enumerate(files):
                file.rename(aside / str(number))
                undo.callback((aside / str(number)).rename, file)
        except OSError as error:
            raise InputError(cannot_write(out, error)) from error
        yield
        undo.pop_all()
    discard(aside)
    for folder in _mask_folders(out):
        remove_empty(folder)


def _mask_folders(out: Path) -> list[Path]:
    """List the folders ``masks/0``, ``masks/1``, and so on."""
    return [folder for folder in (out / MASKS).glob("*") if folder.name.isdecimal()]


def _discard_stale(out: Path) -> None:
    for name in (OVERLAY, RESULT, _EARLIER):
        discard_stale(out, name)
    for folder in _mask_folders(out):
        discard_stale(folder, "*.png")
