"""Lock the folder of a run, and replace the files of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from rvos_deploy.video.sinks.outputs import Output
from rvos_deploy.video.sinks.registry import all_outputs

_EARLIER = "earlier"


def check_run_folder(out: Path, inputs: list[Path], outputs: Sequence[Output]) -> None:
    """Refuse a folder whose files a run must not replace; change nothing.

    Args:
        out: the folder of the run, which need not exist.
        inputs: files and folders that the run reads.
        outputs: what the run will write.

    Raises:
        InputError: ``out`` is a file, another program wrote a file of the same name, files would be
            written through a symlink, or an input would be replaced.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder for --out")
    for output in outputs:
        output.check(out)
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
    """List the files of an earlier run, whatever it saved, and no others."""
    return [file for output in all_outputs() for file in output.earlier(out)]


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
    for output in all_outputs():
        for folder in output.folders(out):
            remove_empty(folder)


def _discard_stale(out: Path) -> None:
    discard_stale(out, _EARLIER)
    for output in all_outputs():
        output.discard_stale(out)
