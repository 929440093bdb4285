"""Find the files of a split, in the layouts of MeViS and Ref-YouTube-VOS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.datasets.entries import Entry
from rvos_deploy.errors import InputError

V1, V2 = "meta_expressions.json", "meta_expressions_v2.json"
FRAMES = "JPEGImages"
_META_FOLDER = "meta_expressions"


@dataclass(frozen=True)
class SplitFiles:
    """Hold the path of the list of expressions, and the folder of frames and annotation."""

    meta: Path
    folder: Path


def find_split(data: str | os.PathLike[str]) -> SplitFiles:
    """Find the one split that ``data`` names.

    Args:
        data: the list of expressions; its folder, where version 2 takes precedence; for
            Ref-YouTube-VOS, the folder of the split's frames; or a folder that holds exactly one of
            these.

    Raises:
        InputError: no split is found, or several are.
    """
    path = Path(data)
    if path.is_file():
        return SplitFiles(path, _frames_folder(path))
    if not path.is_dir():
        raise InputError(f"{path} does not exist; pass the folder of one split of the data set")
    if meta := _meta_of(path):
        return SplitFiles(meta, _frames_folder(meta))
    found = {child: meta for child in _subfolders(path) if (meta := _meta_of(child))}
    if len(found) > 1:
        names = ", ".join(child.name for child in found)
        raise InputError(
            f"{path} holds several splits ({names}); pass one of them, for example "
            f"{list(found)[-1]}"
        )
    if not found:
        raise InputError(
            f"{path} holds neither {V1} nor {V2}; pass the folder of one split, as published "
            "(for example mevis/valid_u)"
        )
    meta = next(iter(found.values()))
    return SplitFiles(meta, _frames_folder(meta))


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder {path} cannot be read: {error.strerror}") from error


def _meta_of(folder: Path) -> Path | None:
    # The list is beside the frames (MeViS), or in a folder of all splits (Ref-YouTube-VOS).
    for place in (folder, folder.parent / _META_FOLDER / folder.name):
        for name in (V2, V1):
            if (place / name).is_file():
                return place / name
    return None


def _frames_folder(meta: Path) -> Path:
    split = meta.parent
    return split.parent.parent / split.name if split.parent.name == _META_FOLDER else split


def files_of(folder: Path, names: tuple[str, ...], suffix: str, entry: Entry) -> tuple[Path, ...]:
    """Return the paths ``folder / (name + suffix)``.

    Raises InputError, which names ``entry``: a file is missing.
    """
    try:
        present = {path.name for path in folder.iterdir()}
    except OSError:
        present = set()
    for name in names:
        if name + suffix not in present:
            raise entry.fault(f"the file {folder / (name + suffix)} is missing")
    return tuple(folder / (name + suffix) for name in names)


def frame_names(entry: Entry) -> tuple[str, ...]:
    """Return the frame names of a video in the listed order.

    Raises InputError: the list is empty, or a name occurs twice or leads to another folder.
    """
    names = tuple(frame.as_name() for frame in entry.elements())
    if not names:
        raise entry.fault("a video needs at least one frame")
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise entry.fault(f"the frame {double} is listed twice")
    return names


def expression_text(entry: Entry) -> str:
    """Return the text of an expression. Raises InputError: the text is blank."""
    text = entry.get("exp")
    if not text.as_text().strip():
        raise text.fault("the expression is blank")
    return text.as_text()
