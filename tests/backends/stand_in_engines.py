"""Engines of a bundle for the stand-in of TensorRT: a plan is the path of an ONNX file."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import msgspec
from broken_graphs import poison_output

from rvos_deploy.bundle.engine_sidecar import (
    EngineSidecar,
    Target,
    engine_folder,
    plan_file,
    read_sidecar,
    sidecar_file,
)
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.json_file import write_json

SIZES = {"H": (32, 96, 256), "W": (32, 160, 256), "E": (1, 2, 4), "L": (2, 16, 77), "M": (1, 8, 64)}


VERSIONS: dict[Target, str] = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}


def add_engines(source: Path, folder: Path, target: Target = "tensorrt") -> Bundle:
    """Link a bundle's files into a new folder, and put an engine of every graph there."""
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    bundle = open_bundle(folder)
    engine_folder(folder, target).mkdir(parents=True)
    for graph, spec in bundle.graphs.items():
        plan = plan_file(folder, target, graph)
        plan.write_bytes(str(bundle.graph_file(graph).path).encode())
        sidecar = EngineSidecar(
            graph=graph,
            target=target,
            precision="fp32",
            created="2026-11-24T12:00:00Z",
            plan_sha256=hashlib.sha256(plan.read_bytes()).hexdigest(),
            plan_bytes=plan.stat().st_size,
            onnx_sha256={n: e.sha256 for n, e in bundle.onnx_entries(graph).items()},
            tensorrt_version=VERSIONS[target],
            compute_capabilities=("8.9",),
            gpu="stand-in",
            version_compatible=False,
            hardware_compatible=False,
            stripped=False,
            profiles=({axis.name: SIZES[axis.name] for axis in spec.axes},),
            options=(),
            settings={},
            layers={},
            plugin_layers=0,
            build_seconds=1.0,
            versions={},
            parity=({"name": "stand-in", "passed": True},),
            parity_reason=None,
        )
        write_json(sidecar_file(plan), sidecar.as_dict())
    return bundle


def break_engine(bundle: Bundle, graph: str, output: str) -> None:
    """Its plan now names a graph that gives NaN there; hashes as build-engine would have them."""
    # The stand-in knows a plan's graph by its file's name.
    onnx = bundle.path / "broken" / f"{graph}.onnx"
    onnx.parent.mkdir()
    shutil.copy(bundle.graph_file(graph).path, onnx)
    poison_output(onnx, output, math.nan)
    plan = plan_file(bundle.path, "tensorrt", graph)
    plan.write_bytes(str(onnx).encode())
    sidecar = msgspec.structs.replace(
        read_sidecar(bundle.path, "tensorrt", graph),
        plan_sha256=hashlib.sha256(plan.read_bytes()).hexdigest(),
        plan_bytes=plan.stat().st_size,
    )
    write_json(sidecar_file(plan), sidecar.as_dict())
