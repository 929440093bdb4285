"""Write a Triton model repository from a bundle: a model for each graph, and one for the stream."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvos_deploy.bundle.folder import MANIFEST, TOKENIZER, Bundle, bundle_files, open_bundle
from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.files import cannot_write, replacing_folder
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.triton.config_text import graph_config, stream_config

Graphs = Literal["onnx", "plans", "in-process"]
"""Where graphs run: as models of Triton's ONNX Runtime or TensorRT back end, or in the stream model
itself."""
VERSION = "1"
BUNDLE = "bundle"
STREAM = "stream"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
MARK = ".rvos-deploy-triton"
"""An empty file by which a repository is known as ours."""
MODEL = """\"\"\"The sequence model of this repository; rvos-deploy holds its code.\"\"\"

from rvos_deploy.triton.stream_model import TritonPythonModel  # noqa: F401
"""
_KINDS: Mapping[str, str | None] = {"auto": None, "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True)
class RepositoryOptions:
    """Choose how a repository is written.

    Args:
        graphs: where graphs run.
        prefix: of the models' names.
        device: of the graphs' models: ``auto`` (Triton decides), ``cpu`` or ``gpu``.
        streams: at a time.
        idle_seconds: without a request, after which a stream ends.
        backend: of graphs in process.
        overwrite: replace a repository that was written before.
    """

    graphs: Graphs = "onnx"
    prefix: str = "rvos"
    device: Literal["auto", "cpu", "gpu"] = "auto"
    streams: int = 16
    idle_seconds: float = 60.0
    backend: str = "auto"
    overwrite: bool = False


def export_repository(source: str | Path, out: Path, options: RepositoryOptions) -> list[str]:
    """Write a repository, and return the names of its models; the stream's is the last one.

    The bundle's files are hashed before they are copied, and the copies after it.

    Raises:
        InputError: the name is wrong, or ``out`` exists and is not a repository of ours.
        BundleError: the bundle cannot be read, or has no engines for ``plans``.
    """
    if not _NAME.fullmatch(options.prefix):
        raise InputError(
            f"--name '{options.prefix}' must begin with a letter, and hold letters, digits, - and _"
        )
    bundle = open_bundle(source)
    refuse_overlap(bundle_files(bundle.path), [out])
    _check_target(out, options.overwrite)
    with _errors(out), replacing_folder(out, overwrite=options.overwrite) as staging:
        (staging / MARK).touch()
        names = []
        if options.graphs != "in-process":
            for graph in bundle.graphs:
                name = f"{options.prefix}_{graph}"
                _write_graph(bundle, graph, staging / name, name, options)
                names.append(name)
        name = f"{options.prefix}_{STREAM}"
        _write_stream(bundle, staging / name, name, options)
        return [*names, name]


def _check_target(out: Path, overwrite: bool) -> None:
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if not os.path.lexists(out):
        return
    if not (out / MARK).is_file():
        raise InputError(
            f"{out} was not written by export-triton, so it is not replaced; choose another --out"
        )
    if not overwrite:
        raise InputError(f"{out} exists; pass --overwrite, or choose another --out")


@contextmanager
def _errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(cannot_write(out, error)) from error


def _write_graph(
    bundle: Bundle, graph: str, folder: Path, name: str, options: RepositoryOptions
) -> None:
    version = folder / VERSION
    version.mkdir(parents=True)
    if options.graphs == "plans":
        _copy_plan(bundle, graph, version)
        backend = {"backend": "tensorrt", "default_model_filename": "model.plan"}
    else:
        for file in bundle.onnx_entries(graph):
            # A model with weights beside it names their file.
            target = "model.onnx" if file == f"{graph}.onnx" else file
            (version / target).write_bytes(bundle.read(file))
        backend = {"backend": "onnxruntime", "default_model_filename": "model.onnx"}
    text = graph_config(name, bundle.graphs[graph], backend, _KINDS[options.device])
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _copy_plan(bundle: Bundle, graph: str, version: Path) -> None:
    plan = bundle.path / "engines" / "tensorrt" / f"{graph}.plan"
    if not plan.is_file():
        raise BundleError(
            f"{bundle.path} has no TensorRT plan of {graph}; run 'rvos-deploy build-engine "
            f"{bundle.path}' on the GPU of the server"
        )
    shutil.copyfile(plan, version / "model.plan")
    sidecar = plan.with_suffix(".plan.json")
    if sidecar.is_file():
        shutil.copyfile(sidecar, version / "model.plan.json")


def _write_stream(bundle: Bundle, folder: Path, name: str, options: RepositoryOptions) -> None:
    version = folder / VERSION
    (version / BUNDLE).mkdir(parents=True)
    in_process = options.graphs == "in-process"
    files = list(bundle.manifest.files) if in_process else [TOKENIZER]
    for file in files:
        (version / BUNDLE / file).write_bytes(bundle.read(file))
    shutil.copyfile(bundle.path / MANIFEST, version / BUNDLE / MANIFEST)
    (version / "model.py").write_text(MODEL, encoding="utf-8")
    parameters = {
        "graphs": options.graphs,
        "prefix": options.prefix,
        "streams": str(options.streams),
        "idle_seconds": f"{options.idle_seconds:g}",
        "backend": options.backend,
    }
    text = stream_config(
        name, parameters, streams=options.streams, idle_seconds=options.idle_seconds
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
