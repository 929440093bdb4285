"""Read a graph's ONNX file and its external data. Only hashed bytes are parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvos_deploy.errors import BundleError, one_line
from rvos_deploy.files import read_regular_file

MAXIMUM_MODEL_BYTES = 2 << 30
"""Protobuf's limit."""
MAXIMUM_DATA_BYTES = 8 << 30

# Messages that lead to tensors, by field number (onnx.proto; a test compares them with onnx's own).
FIELDS: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
_INITIALIZER = ("ModelProto", "GraphProto", "TensorProto", "StringStringEntryProto")


@dataclass(frozen=True)
class OnnxContent:
    """Hold the bytes of a graph.

    Args:
        path: path of the file, for messages only.
        model: the serialised ``ModelProto``.
        external: contents of the files with its weights, by the name in the model.
    """

    path: Path
    model: bytes
    external: Mapping[str, bytes]


@dataclass(frozen=True)
class OnnxFile:
    """Locate a graph's file, and read it.

    Args:
        path: path of the ONNX file.
        read_checked: reads a file beside it and checks the hash (a bundle's ``read``); None for a
            file that was just exported and has no hash yet.
    """

    path: Path
    read_checked: Callable[[str], bytes] | None = None

    def read_model(self) -> bytes:
        """Read the serialised model without its external data.

        Raises:
            BundleError: the file is missing or unreadable, or has another hash.
        """
        return self._read(self.path.name, MAXIMUM_MODEL_BYTES)

    def read(self) -> OnnxContent:
        """Read the model and its external data.

        Raises:
            BundleError: as in :meth:`read_model`, or the model refers to a file that does not
                belong to it.
        """
        model = self.read_model()
        external: dict[str, bytes] = {}
        for location in sorted(external_locations(model, self.path)):
            if location != f"{self.path.name}.data":
                raise BundleError(
                    f"{self.path} reads weights from '{one_line(location)}', needed: "
                    f"{self.path.name}.data beside it; export the bundle again"
                )
            external[location] = self._read(location, MAXIMUM_DATA_BYTES)
        return OnnxContent(self.path, model, external)

    def _read(self, name: str, maximum: int) -> bytes:
        if self.read_checked is not None:
            return self.read_checked(name)
        file = self.path.with_name(name)
        try:
            return read_regular_file(file, maximum)
        except OSError as error:
            raise BundleError(
                f"{file} cannot be read ({error.strerror}); export it again"
            ) from error


def external_locations(model: bytes, path: Path) -> set[str]:
    """List the files that a serialised model reads weights from.

    This function parses the protobuf itself, because ``onnx`` need not be installed where bundles
    run.

    Raises:
        BundleError: the bytes are not protobuf, or a tensor other than an initializer of the graph
            has external data.
    """
    if b"location" not in model:  # no entry has the key, so the model need not be parsed
        return set()
    found: set[str] = set()
    waiting: list[tuple[tuple[str, ...], int, int]] = [(("ModelProto",), 0, len(model))]
    try:
        while waiting:
            kinds, start, end = waiting.pop()
            if kinds[-1] == "StringStringEntryProto":
                key, value = _entry(model, start, end)
                if key == b"location":
                    if kinds != _INITIALIZER:
                        raise BundleError(
                            f"{path} has external data in {kinds[-3]}, needed: in initializers of "
                            "its graph only; export the bundle again"
                        )
                    found.add(value.decode("utf-8", "backslashreplace"))
                continue
            known = FIELDS[kinds[-1]]
            for number, first, last in _messages(model, start, end):
                if number in known:
                    # Only the last steps of a deep path matter; a shallow path is kept whole.
                    waiting.append(((*kinds[-5:], known[number]), first, last))
    except (IndexError, ValueError):
        raise BundleError(
            f"{path} is damaged (not an ONNX model); copy the bundle again, or export again"
        ) from None
    return found


def has_functions(model: bytes) -> bool:
    """Tell whether a serialised model holds functions of its own. Bytes of another form: False."""
    functions = next(n for n, kind in FIELDS["ModelProto"].items() if kind == "FunctionProto")
    try:
        return any(number == functions for number, _, _ in _messages(model, 0, len(model)))
    except (IndexError, ValueError):
        return False


def _entry(data: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    parts = {number: data[first:last] for number, first, last in _messages(data, start, end)}
    return parts.get(1, b""), parts.get(2, b"")


def _messages(data: bytes, start: int, end: int) -> list[tuple[int, int, int]]:
    """List number, start and end of the length-delimited fields of a protobuf message."""
    fields: list[tuple[int, int, int]] = []
    at = start
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            length, at = _varint(data, at)
            fields.append((tag >> 3, at, at + length))
            at += length
        else:
            raise ValueError("a group, which ONNX does not have")
    if at != end:
        raise ValueError("a field beyond its message")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than ten bytes")


def external_slices(model: Any, content: OnnxContent) -> dict[str, memoryview]:
    """Return the bytes of every initializer outside an ``onnx.ModelProto``, by name.

    Raises:
        BundleError: an initializer exceeds its file.
    """
    slices: dict[str, memoryview] = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" not in entries:
            continue
        whole = content.external[entries["location"]]
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", len(whole) - offset))
        except ValueError:
            offset = length = -1
        if offset < 0 or length < 0 or offset + length > len(whole):
            raise BundleError(
                f"{content.path}: {one_line(tensor.name)} reaches beyond its external data; "
                "export the bundle again"
            )
        slices[tensor.name] = memoryview(whole)[offset : offset + length]
    return slices


def whole_model(onnx: Any, content: OnnxContent) -> Any:
    """Return an ``onnx.ModelProto`` that holds its external data.

    Args:
        onnx: the package, which need not be installed where bundles run.
        content: content of the file.

    Raises:
        BundleError: an initializer exceeds its file.
    """
    model = onnx.load_model_from_string(content.model)
    put_inside(model, external_slices(model, content))
    return model


def put_inside(model: Any, slices: Mapping[str, memoryview]) -> None:
    """Put the bytes of :func:`external_slices` into an ``onnx.ModelProto``."""
    for tensor in model.graph.initializer:
        if tensor.name in slices:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = bytes(slices[tensor.name])


def address_of(data: memoryview) -> int:
    """Return the address of bytes, for a library that reads pointers. Keep ``data`` alive."""
    return int(np.frombuffer(data, np.uint8).ctypes.data) if data.nbytes else 0
