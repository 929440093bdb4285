"""Read Ref-YouTube-VOS, and Ref-DAVIS17 converted to the same layout.

::

    meta_expressions/{train,valid,test}/meta_expressions.json
    {train,valid}/JPEGImages/<video>/<frame>.jpg
    {train,valid}/Annotations/<video>/<frame>.png     palette index = obj_id
    {train,valid}/meta.json                           all objects of a video (optional)

ReferFormer converts Ref-DAVIS17 with tools/data/convert_davis_to_ytvos.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from rvos_deploy.datasets.annotations import VOID, PaletteAnnotation
from rvos_deploy.datasets.entries import Entry, read_json
from rvos_deploy.datasets.layout import (
    FRAMES,
    V1,
    SplitFiles,
    expression_text,
    files_of,
    find_split,
    frame_names,
)
from rvos_deploy.datasets.records import DataSplit, ExpressionRecord, VideoRecord


def read_ref_youtube_vos(data: str | os.PathLike[str]) -> DataSplit:
    """Read a split of Ref-YouTube-VOS. Frames and masks are opened on demand.

    The list of ``valid`` also contains the videos of ``test``. Those videos are left out if
    ``meta_expressions/test`` exists and names them (202 videos remain).

    Args:
        data: the folder of the split's frames, the folder of its list, or the list itself.

    Raises:
        InputError: the split is not found, the JSON is malformed, a frame or an annotation is
            missing, or meta.json lacks an obj_id. The message names the file and the entry.
    """
    split = find_split(data)
    return _read(split, _test_videos(split))


def read_ref_davis(data: str | os.PathLike[str]) -> DataSplit:
    """Read a converted split of Ref-DAVIS17, like :func:`read_ref_youtube_vos`."""
    return _read(find_split(data), frozenset())


def _read(split: SplitFiles, left_out: frozenset[str]) -> DataSplit:
    videos = read_json(split.meta).get("videos")
    objects = split.folder / "meta.json"
    known = read_json(objects).get("videos") if objects.is_file() else None
    return DataSplit(
        split.meta,
        tuple(
            _read_video(name, entry, split.folder, known)
            for name, entry in videos.named_items()
            if name not in left_out
        ),
    )


def _test_videos(split: SplitFiles) -> frozenset[str]:
    listed = split.meta.parent.parent / "test" / V1
    if split.meta.parent.name != "valid" or not listed.is_file():
        return frozenset()
    return frozenset(name for name, _ in read_json(listed).get("videos").items())


def _read_video(name: str, entry: Entry, folder: Path, known: Entry | None) -> VideoRecord:
    frames = tuple(sorted(frame_names(entry.get("frames"))))
    expressions = tuple(_read_expression(*item) for item in entry.get("expressions").named_items())
    has_target = [expression.object_ids is not None for expression in expressions]
    if any(has_target) and not all(has_target):
        raise entry.get("expressions").fault("some expressions have an obj_id and some have none")
    annotation = None
    if any(has_target):
        annotation = PaletteAnnotation(
            files_of(folder / "Annotations" / name, frames, ".png", entry.get("frames")),
            _objects(name, expressions, known),
        )
    images = files_of(folder / FRAMES / name, frames, ".jpg", entry.get("frames"))
    return VideoRecord(name, images, expressions, annotation)


def _read_expression(key: str, entry: Entry) -> ExpressionRecord:
    ids = None
    if entry.has("obj_id"):
        target = entry.get("obj_id")
        if isinstance(target.value, list):
            raise target.fault("a list of objects, as in MeViS; read it as MeViS (protocol mevis)")
        ids = (_object_id(target, target.as_id()),)
    return ExpressionRecord(key, expression_text(entry), None, ids, ids)


def _objects(
    name: str, expressions: tuple[ExpressionRecord, ...], known: Entry | None
) -> tuple[int, ...]:
    """Return the objects that meta.json lists, or else the objects that expressions refer to."""
    targets = {key for expression in expressions for key in expression.object_ids or ()}
    if known is None or not known.has(name):
        return tuple(sorted(targets))
    listed = known.get(name).get("objects")
    keys = {_object_id(listed, int(key)) for key, _ in listed.items() if _is_number(key)}
    if unknown := targets - keys:
        raise listed.fault(f"has no object {min(unknown)}, which an expression refers to")
    return tuple(sorted(keys))


def _object_id(entry: Entry, key: int) -> int:
    """Check that an object id is a palette index, neither background nor void, and return it."""
    if not 0 < key < VOID:
        raise entry.fault(f"expected a palette index from 1 to {VOID - 1}, found {key}")
    return key


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 10
