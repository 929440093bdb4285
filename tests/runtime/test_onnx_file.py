"""Where a model's weights lie: found in its protobuf without ``onnx``, and read once."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import (
    FIELDS,
    OnnxContent,
    OnnxFile,
    external_locations,
    has_functions,
)
from rvos_deploy.errors import BundleError
from rvos_deploy.runtime.backends.registry import make_backend


def test_the_fields_are_those_of_onnx() -> None:
    """Every message of onnx.proto that leads to a tensor, by its number; none is forgotten."""
    by_name = {message: getattr(onnx, message).DESCRIPTOR for message in FIELDS}

    def leads(descriptor, seen: tuple[str, ...] = ()) -> bool:  # type: ignore[no-untyped-def]
        if descriptor.name == "TensorProto":
            return True
        if descriptor.name in seen:
            return False
        children = (field.message_type for field in descriptor.fields if field.message_type)
        return any(leads(child, (*seen, descriptor.name)) for child in children)

    for message, descriptor in by_name.items():
        if message in ("TensorProto", "StringStringEntryProto"):
            continue
        found = {
            field.number: field.message_type.name
            for field in descriptor.fields
            if field.message_type is not None and leads(field.message_type)
        }
        assert FIELDS[message] == found, message
    (entries,) = (f for f in by_name["TensorProto"].fields if f.name == "external_data")
    assert FIELDS["TensorProto"] == {entries.number: "StringStringEntryProto"}
    entry = by_name["StringStringEntryProto"]
    assert {field.name: field.number for field in entry.fields} == {"key": 1, "value": 2}


def elsewhere(name: str, location: str = "g.onnx.data") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def graph(*nodes: onnx.NodeProto, initializer: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], list(initializer))


PATH = Path("g.onnx")


def test_locations_of_initializers_are_found() -> None:
    inside = numpy_helper.from_array(np.zeros(3, np.float32), "inside")
    parts = (elsewhere("a"), inside, elsewhere("b", "other"))
    content = model(graph(initializer=parts)).SerializeToString()
    assert external_locations(content, PATH) == {"g.onnx.data", "other"}
    assert (
        external_locations(model(graph(initializer=(inside,))).SerializeToString(), PATH) == set()
    )


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def branch(inner: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())


def nested(depth: int) -> onnx.GraphProto:
    inner = graph(constant(elsewhere("w")))
    for _ in range(depth):
        inner = graph(branch(inner))
    return inner


def in_function() -> onnx.ModelProto:
    whole = model(graph())
    function = helper.make_function(
        "rvos", "f", [], ["c"], [constant(elsewhere("w"))], [helper.make_opsetid("", 18)]
    )
    whole.functions.append(function)
    return whole


def in_training() -> onnx.ModelProto:
    whole = model(graph())
    whole.training_info.add().algorithm.CopyFrom(graph(initializer=(elsewhere("w"),)))
    return whole


def sparse() -> onnx.ModelProto:
    whole = model(graph())
    whole.graph.sparse_initializer.add().values.CopyFrom(elsewhere("w"))
    return whole


@pytest.mark.parametrize(
    "whole",
    [
        model(graph(constant(elsewhere("w")))),
        model(graph(branch(graph(initializer=(elsewhere("w"),))))),
        model(nested(1)),
        model(nested(20)),
        in_function(),
        in_training(),
        sparse(),
    ],
    ids=["constant", "branch", "nested", "deep", "function", "training", "sparse"],
)
def test_external_data_anywhere_else_is_refused(whole: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match="needed: in initializers of its graph only"):
        external_locations(whole.SerializeToString(), PATH)


@pytest.mark.parametrize(
    "content",
    [b"location", b"\x0a\xff\xff\xff\xff\x0flocation", b"\xff" * 20 + b"location", b"\x0blocation"],
)
def test_what_is_no_protobuf_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match="not an ONNX model"):
        external_locations(content, PATH)


def test_a_session_does_not_keep_the_bytes(tiny_bundle: Path) -> None:
    """30 MB of a text encoder would stay beside the session's own weights."""

    freed: list[int] = []

    class Traced(bytes):
        """Bytes that tell when they are freed."""

        def __del__(self) -> None:
            freed.append(len(self))

    class TracedFile(OnnxFile):
        def read(self) -> OnnxContent:
            content = super().read()
            return OnnxContent(content.path, Traced(content.model), content.external)

    file = tiny_bundle / "mask_head.onnx"
    spec = open_bundle(tiny_bundle).graphs["mask_head"]
    with make_backend(threads=1).open_files([(spec, TracedFile(file))]):
        gc.collect()
        assert freed == [file.stat().st_size]


def test_functions_are_found_without_onnx(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    for name in bundle.graphs:
        content = bundle.graph_file(name).read_model()
        assert has_functions(content) == bool(onnx.load_model_from_string(content).functions)
        assert has_functions(content) == (name == "frame_decoder")
    assert not has_functions(b"nonsense")
    assert not has_functions(b"")
