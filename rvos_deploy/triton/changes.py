"""Tell whether somebody changed a folder since it was written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rvos_deploy.errors import InputError
from rvos_deploy.files import sha256_file

_CACHE = "__pycache__"  # Python writes it beside a model's code


def hash_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file, by its path in the folder."""
    return {file: sha256_file(folder / file) for file in _files(folder)}


def list_changes(folder: Path, hashes: Mapping[str, str], ignored: str) -> list[str]:
    """List the files that were changed or added. What is missing cannot be lost.

    Args:
        folder: what was written.
        hashes: from ``hash_files``, when it was written.
        ignored: the file that holds the hashes.

    Raises:
        InputError: a file cannot be read.
    """
    changes = []
    try:
        for file in _files(folder):
            if file == ignored:
                continue
            if file not in hashes:
                changes.append(f"{file} (added)")
            elif (folder / file).is_symlink() or sha256_file(folder / file) != hashes[file]:
                changes.append(f"{file} (changed)")
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be read ({error.strerror}), so changes in {folder} "
            "are not seen; make it readable, or choose another --out"
        ) from error
    return changes


def _files(folder: Path) -> list[str]:
    """List the files of a folder: relative, links to folders as themselves, sorted."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for root, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if Path(root, name).is_symlink()]
        folders[:] = [name for name in folders if name != _CACHE]
        found += [Path(root, name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(found)
