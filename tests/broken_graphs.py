"""Bundles whose graphs give what is no number, hashes and all as the exporter would write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rvos_deploy.bundle.folder import MANIFEST, write_manifest


def poison_output(file: Path, output: str, value: float) -> None:
    """Add ``value`` to one output of a graph, everywhere."""
    model = onnx.load(str(file))
    graph = model.graph
    (edge,) = [edge for edge in graph.output if edge.name == output]
    dtype = helper.tensor_dtype_to_np_dtype(edge.type.tensor_type.elem_type)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == output:
                    names[index] = "before/poison"
    graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), "poison"))
    graph.node.append(helper.make_node("Add", ["before/poison", "poison"], [output]))
    onnx.save(model, str(file))


def poison_weight(file: Path, index: int, value: float) -> str | None:
    """Put ``value`` into the middle of a graph's weight; its name, or None when it has no such."""
    model = onnx.load(str(file))
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    weights = [weight for weight in model.graph.initializer if weight.data_type in floats]
    if index >= len(weights):
        return None
    array = numpy_helper.to_array(weights[index]).copy()
    array.flat[array.size // 2] = value
    name = weights[index].name
    weights[index].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, str(file))
    return str(name)


def copy_bundle(source: Path, folder: Path) -> Path:
    """A copy whose files may be changed."""
    shutil.copytree(source, folder)
    return folder


def sign_again(folder: Path) -> None:
    """Write the hashes of changed files into the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names = list(manifest.pop("files"))
    for key in ("schema", "manifest_sha256"):
        del manifest[key]
    write_manifest(folder, manifest, names)
