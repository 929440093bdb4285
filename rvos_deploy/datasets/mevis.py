"""MeViS, version 1 and 2, and Moving Sprites, which is written in the same layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rvos_deploy.datasets.annotations import RleAnnotation
from rvos_deploy.datasets.entries import Entry, read_json
from rvos_deploy.datasets.layout import expression_text, files_of, find_split, frame_names
from rvos_deploy.datasets.records import DataSplit, ExpressionRecord, VideoRecord

MASKS = "mask_dict.json"


def read_mevis(data: str | os.PathLike[str]) -> DataSplit:
    """Read a split of MeViS or Moving Sprites; frames and masks are opened later.

    Args:
        data: the folder of the split, or its meta_expressions.json or meta_expressions_v2.json.
            Of a folder with both, version 2 is read (with expressions that mean nothing).

    Raises:
        InputError: naming file and entry: no such split, malformed JSON, a frame that is not
            there, obj_id and anno_id that do not pair, an anno_id that mask_dict.json does not
            know or whose masks are not as many as the frames.
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
    """mask_dict.json, or None for a split whose ground truth is not published."""
    told = any(
        expression.has("anno_id")
        for _, video in videos.items()
        for _, expression in video.get("expressions").items()
    )
    return read_json(file) if told else None


def _read_video(name: str, entry: Entry, folder: Path, masks: Entry | None) -> VideoRecord:
    names = frame_names(entry.get("frames"))
    # Masks stand in the order in which the frames are listed, which need not be sorted.
    order = sorted(range(len(names)), key=names.__getitem__)
    frames = tuple(names[i] for i in order)
    expressions = tuple(
        _read_expression(key, expression, masks is not None)
        for key, expression in entry.get("expressions").named_items()
    )
    return VideoRecord(
        name,
        files_of(folder / "JPEGImages" / name, frames, ".jpg", entry.get("frames")),
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
            f"obj_id has {len(objects)} entries and anno_id {len(targets)}; they must pair"
        )
    return ExpressionRecord(key, text, kind, objects, targets)


def _ids(entry: Entry) -> tuple[int, ...]:
    return tuple(element.as_id() for element in entry.elements())


def _read_annotation(
    name: str, entry: Entry, masks: Entry, names: tuple[str, ...], order: list[int]
) -> RleAnnotation:
    """The masks of all annotations that the video's expressions, or its list of objects, name."""
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
    if entry.has("objects"):  # Moving Sprites: also the objects that no expression means
        named += [item.get("anno_id") for item in entry.get("objects").elements()]
    return named


def _read_runs(
    named: Entry, masks: Entry, order: list[int]
) -> tuple[Mapping[str, object] | None, ...]:
    key = str(named.as_id())
    if not masks.has(key):
        raise named.fault(f"{masks.file} has no anno_id {key}; both must be of one release")
    rows = masks.get(key)
    found = len(rows.as_a(list))
    if found != len(order):
        raise rows.fault(
            f"{found} masks, but the video has {len(order)} frames ({named.where} in {named.file})"
        )
    for row in rows.elements():
        if row.value is not None:
            _check_run(row)
    return tuple(rows.value[i] for i in order)


def _check_run(row: Entry) -> None:
    """Refuse what cannot be a mask; its numbers are looked at when it is decoded."""
    for key, value in row.as_a(dict).items():
        # Nested values could not be sent to the processes that decode them.
        if isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)
        ):
            raise row.fault(f"'{key[:20]}' holds nested values, so this is no run-length mask")
