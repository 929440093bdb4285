"""Describe what kinds of sinks write into a run's folder, and find what an earlier run wrote there.

This module imports neither NumPy nor PyAV: the help of the command line reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rvos_deploy.errors import InputError
from rvos_deploy.files import discard_stale

SOFTWARE = "rvos-deploy"
"""What each PNG of a run names as its software, so that a later run may replace it."""
# The text chunk follows the header of a PNG, which has 33 bytes.
_MARK, _MARKED_WITHIN = b"tEXtSoftware\0" + SOFTWARE.encode(), 128


@dataclass(frozen=True)
class FileOutput:
    """Describe one file.

    Args:
        name: its name in the run's folder.
        beginning: its first bytes, by which a later run recognises it; a file that begins
            otherwise is another program's, and is never replaced. Empty: any file of this name.
    """

    name: str
    beginning: bytes = b""

    def check(self, out: Path) -> None:
        """Refuse to replace what no run wrote. Raises InputError."""
        path = out / self.name
        if path.is_dir() or (path.is_file() and not self._is_ours(path)):
            raise InputError(
                f"{path} was not written by a run, so it is not replaced; move it, or choose "
                "another --out"
            )

    def earlier(self, out: Path) -> list[Path]:
        """List the file if a run wrote it."""
        path = out / self.name
        return [path] if path.is_file() and self._is_ours(path) else []

    def folders(self, out: Path) -> list[Path]:
        """Return no folder."""
        return []

    def discard_stale(self, out: Path) -> None:
        """Remove temporaries of killed runs."""
        discard_stale(out, self.name)

    def _is_ours(self, path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(len(self.beginning))
        return start in (b"", self.beginning)  # an empty file holds nothing to keep


@dataclass(frozen=True)
class FolderOutput:
    """Describe a folder of files: one for each frame or expression, or in folders 0, 1, 2, ...

    Args:
        name: name of the folder in the run's folder.
        suffixes: suffixes of its files.
        numbered: whether a file with a number as name is a run's without a mark: videos have none,
            and version 0.1 marked no mask.
    """

    name: str
    suffixes: tuple[str, ...] = (".png",)
    numbered: bool = False

    def check(self, out: Path) -> None:
        """Refuse to write through a symlink. Raises InputError."""
        for folder in self.folders(out):
            if folder.is_symlink():
                raise InputError(
                    f"{folder} is a symlink, and {self.name} are not written through one; remove "
                    "it, or choose another --out"
                )
        if (out / self.name).exists() and not (out / self.name).is_dir():
            raise InputError(
                f"{out / self.name} is a file, where a folder is needed; move it, or choose "
                "another --out"
            )

    def earlier(self, out: Path) -> list[Path]:
        """List the files that a run wrote: marked PNGs, and files with a number as name."""
        return [
            file
            for folder in self.folders(out)
            for suffix in self.suffixes
            for file in folder.glob(f"*{suffix}")
            if (self.numbered and file.stem.isdecimal()) or _is_marked(file)
        ]

    def folders(self, out: Path) -> list[Path]:
        """Return the folders that exist, the inner ones first."""
        whole = out / self.name
        inner = [folder for folder in whole.glob("*") if folder.name.isdecimal()]
        return [*inner, whole] if whole.is_dir() or whole.is_symlink() else []

    def discard_stale(self, out: Path) -> None:
        """Remove temporaries of killed runs."""
        for folder in self.folders(out):
            for suffix in self.suffixes:
                discard_stale(folder, f"*{suffix}")


Output: TypeAlias = FileOutput | FolderOutput


def _is_marked(file: Path) -> bool:
    if file.suffix != ".png" or file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as content:
        return _MARK in content.read(_MARKED_WITHIN)
