"""Read MeViS, version 1 and 2, and Moving Sprites, which uses the same layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rvos_deploy.datasets.annotations import RleAnnotation
from rvos_deploy.datasets.entries import Entry, read_json
from rvos_deploy.datasets.layout import FRAMES, expression_text, files_of, find_split, frame_names
from rvos_deploy.datasets.records import DataSplit, ExpressionRecord, VideoRecord

MASKS = "mask_dict.json"


def read_mevis(data: str | os.PathLike[str]) -> DataSplit:
    """Read a split of MeViS or Moving Sprites. Frames and masks are opened on demand.

    Args:
        data: the folder of the split, or its meta_expressions.json or meta_expressions_v2.json.
            If a folder has both, version 2 is read, which includes expressions without a target.

    Raises:
        InputError: the split is not found, the JSON is malformed, a frame is missing, obj_id and
            anno_id have different lengths, or mask_dict.json lacks an anno_id or has a different
            number of masks than frames. The message names the file and the entry.
    """
    split = find_split(data)
    videos = read_json(split.meta).get("videos")
    masks = _read_masks(videos, split.folder / MASKS)
    return DataSplit(
        split.meta,
        tuple(
            _read_video(name, entry, split.folder, masks) for name, entry in videos.named_items()
        ),
    )


def _read_masks(videos: Entry, file: Path) -> Entry | None:
    """Read mask_dict.json, or return None for a split without published ground truth."""
    has_truth = any(
        expression.has("anno_id")
        for _, video in videos.items()
        for _, expression in video.get("expressions").items()
    )
    return read_json(file) if has_truth else None


def _read_video(name: str, entry: Entry, folder: Path, masks: Entry | None) -> VideoRecord:
    names = frame_names(entry.get("frames"))
    # The masks are in the order of the list of frames, which may be unsorted.
    order = sorted(range(len(names)), key=names.__getitem__)
    frames = tuple(names[i] for i in order)
    expressions = tuple(
        _read_expression(key, expression, masks is not None)
        for key, expression in entry.get("expressions").named_items()
    )
    return VideoRecord(
        name,
        files_of(folder / FRAMES / name, frames, ".jpg", entry.get("frames")),
        expressions,
        None if masks is None else _read_annotation(name, entry, masks, names, order),
    )


def _read_expression(key: str, entry: Entry, has_truth: bool) -> ExpressionRecord:
    text = expression_text(entry)
    kind = entry.get("kind").as_text() if entry.has("kind") else None
    if entry.has("obj_id") and not entry.has("anno_id"):
        raise entry.fault(
            "obj_id without anno_id, so this is not MeViS; read it as Ref-YouTube-VOS or "
            "Ref-DAVIS17 (protocol ref-youtube-vos or ref-davis)"
        )
    if not has_truth:
        return ExpressionRecord(key, text, kind, None, None)
    objects, targets = (_ids(entry.get(name)) for name in ("obj_id", "anno_id"))
    if len(objects) != len(targets):
        raise entry.fault(
            f"obj_id has {len(objects)} entries and anno_id {len(targets)}; both must have one "
            "entry per object"
        )
    return ExpressionRecord(key, text, kind, objects, targets)


def _ids(entry: Entry) -> tuple[int, ...]:
    return tuple(element.as_id() for element in entry.elements())


def _read_annotation(
    name: str, entry: Entry, masks: Entry, names: tuple[str, ...], order: list[int]
) -> RleAnnotation:
    """Collect the masks that a video's expressions or its list of objects refer to."""
    runs: dict[int, tuple[Mapping[str, object] | None, ...]] = {}
    for named in _annotations_named(entry):
        anno = named.as_id()
        if anno not in runs:
            runs[anno] = _read_runs(named, masks, order)
    return RleAnnotation(masks.file, name, tuple(names[i] for i in order), runs)


def _annotations_named(entry: Entry) -> list[Entry]:
    named = [
        element
        for _, expression in entry.get("expressions").items()
        for element in expression.get("anno_id").elements()
    ]
    if entry.has("objects"):  # Moving Sprites lists all objects
        named += [item.get("anno_id") for item in entry.get("objects").elements()]
    return named


def _read_runs(
    named: Entry, masks: Entry, order: list[int]
) -> tuple[Mapping[str, object] | None, ...]:
    key = str(named.as_id())
    if not masks.has(key):
        raise named.fault(f"{masks.file} has no anno_id {key}; take both files from one release")
    rows = masks.get(key)
    found = len(rows.as_type(list))
    if found != len(order):
        raise rows.fault(
            f"{found} masks, but the video has {len(order)} frames ({named.where} in {named.file})"
        )
    for row in rows.elements():
        if row.value is not None:
            _check_run(row)
    return tuple(rows.value[i] for i in order)


def _check_run(row: Entry) -> None:
    """Raise InputError for a value that is not a mask. Decoding checks its numbers later."""
    for key, value in row.as_type(dict).items():
        # Deeply nested values cannot be pickled for the processes that decode them.
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)
        ):
            raise row.fault(f"'{key[:20]}' holds nested values, so it is not a run-length mask")
