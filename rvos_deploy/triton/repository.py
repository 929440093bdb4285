"""Write a Triton model repository from a bundle: a model for each graph, and one for the stream."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvos_deploy.bundle.engine_sidecar import EngineSidecar, plan_file, sidecar_file
from rvos_deploy.bundle.folder import MANIFEST, TOKENIZER, Bundle, bundle_files, open_bundle
from rvos_deploy.errors import InputError, ParityError
from rvos_deploy.files import cannot_write, replacing_folder, sha256_file
from rvos_deploy.overlap import refuse_overlap
from rvos_deploy.triton.changes import hash_files, list_changes
from rvos_deploy.triton.config_text import Device, graph_config, stream_config
from rvos_deploy.triton.plans import TARGET, servable_plans, server_needs

Graphs = Literal["onnx", "plans", "in-process"]
"""Where graphs run: as models of Triton's ONNX Runtime or TensorRT back end, or in the stream model
itself."""
VERSION = "1"
BUNDLE = "bundle"
STREAM = "stream"
FORM = "rvos-deploy/triton/1"
"""What ``stream_model.py`` of the server's rvos-deploy must know of a repository."""
MARK = "rvos-deploy.json"
"""A file by which a repository is known as ours. It names our models, and holds the hashes of our
files, so that changes are seen. Triton ignores it."""
_MOST_LISTED = 3
MODEL = '''\
"""The sequence model of this repository. Its code is rvos_deploy.triton.stream_model."""

import sys

# Folders on the server that hold rvos-deploy and what it needs.
sys.path[:0] = {packages!r}

try:
    from rvos_deploy.triton.stream_model import TritonPythonModel  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"{{error}}: the Python of Triton's Python back end "
        f"({{sys.version_info.major}}.{{sys.version_info.minor}}) needs {needed}; "
        "pip install it there, or run export-triton with --packages DIR (docs/triton.md)"
    ) from error
'''
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class RepositoryOptions:
    """Choose how a repository is written.

    Args:
        graphs: where graphs run.
        prefix: of the models' names.
        device: of the graphs: ``auto`` (Triton decides), ``cpu`` or ``gpu``.
        streams: of an instance at a time.
        instances: processes of the stream model.
        expressions: of a stream, at most.
        idle_seconds: without a request, after which a stream ends.
        backend: of graphs in process.
        packages: folders on the server that hold rvos-deploy and what it needs; none: the server's
            Python has them.
        overwrite: replace a repository that was written before.
    """

    graphs: Graphs = "onnx"
    prefix: str = "rvos"
    device: Device = "auto"
    streams: int = 16
    instances: int = 1
    expressions: int = 16
    idle_seconds: float = 60.0
    backend: str = "auto"
    packages: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass(frozen=True)
class ExportedRepository:
    """Describe what was written.

    Args:
        models: names; the stream's is the last one.
        needs: lines that say what the server must have.
    """

    models: tuple[str, ...]
    needs: tuple[str, ...]


def export_repository(
    source: str | Path, out: Path, options: RepositoryOptions
) -> ExportedRepository:
    """Write a repository, complete or not at all.

    The bundle's files are hashed before they are copied, and the copies afterwards.

    Raises:
        InputError: an option is wrong, or ``out`` holds something that export-triton did not write,
            or that was changed since.
        BundleError: the bundle cannot be read, or its plans must not be served.
        ParityError: a copy differs from the bundle's file.
    """
    _check_options(options)
    bundle = open_bundle(source)
    refuse_overlap(bundle_files(bundle.path), [out])
    plans = servable_plans(bundle) if options.graphs == "plans" else {}
    _check_target(out, options.overwrite)
    with _writing(out, overwrite=options.overwrite) as staging:
        models = tuple(_write_models(bundle, plans, staging, options))
        mark = {
            "schema": FORM,
            "models": models,
            "graphs": options.graphs,
            "manifest_sha256": sha256_file(bundle.path / MANIFEST),
            "files": hash_files(staging),
        }
        (staging / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    return ExportedRepository(models, _needs(plans, options))


def _check_options(options: RepositoryOptions) -> None:
    if not _NAME.fullmatch(options.prefix):
        raise InputError(
            f"--name '{options.prefix}' must begin with a letter, and hold at most 64 letters, "
            "digits, - and _"
        )
    if options.graphs == "plans" and options.device == "cpu":
        raise InputError("--graphs plans run on GPUs; leave --device out, or use --graphs onnx")
    if options.graphs != "in-process" and options.backend != "auto":
        raise InputError(
            f"--backend {options.backend} is of graphs in process; add --graphs in-process, or "
            "leave it out"
        )
    for folder in options.packages:
        if not Path(folder).is_absolute():
            raise InputError(
                f"--packages {folder} must be an absolute path, because the server has another "
                "working folder"
            )


def _check_target(out: Path, overwrite: bool) -> None:
    """Refuse to replace what export-triton did not write, additions and changes included."""
    try:
        if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
            return
        mark = json.loads((out / MARK).read_text(encoding="utf-8"))
        if not mark["schema"].startswith(FORM.rpartition("/")[0]):
            raise ValueError("another program's file")
        ours = {MARK, *mark["models"]}
        strange = sorted(path.name for path in out.iterdir() if path.name not in ours)
        hashes = mark.get("files")
        if hashes is not None:
            hashes = dict(hashes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise InputError(
            f"{out} was not written by export-triton, so it is not replaced; choose another --out"
        ) from None
    if not overwrite:
        raise InputError(f"{out} exists; pass --overwrite, or choose another --out")
    if strange:
        raise InputError(
            f"{out} also holds {strange[0]}, which export-triton did not write, so it is not "
            "replaced; choose another --out, and give both to tritonserver (--model-repository may "
            "be repeated)"
        )
    if hashes is None:
        raise InputError(
            f"{out} was written by an older export-triton, which kept no hashes, so changes in it "
            "would be lost unseen; move it away or delete it, or choose another --out"
        )
    if changes := list_changes(out, hashes, MARK):
        more = f" and {len(changes) - _MOST_LISTED} more" if len(changes) > _MOST_LISTED else ""
        raise InputError(
            f"{out} was changed by hand, so it is not replaced: "
            f"{', '.join(changes[:_MOST_LISTED])}{more}; move it away and put your changes into "
            "the new one, or choose another --out"
        )


@contextmanager
def _writing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    try:
        with replacing_folder(out, overwrite=overwrite) as staging:
            yield staging
    except OSError as error:
        raise InputError(cannot_write(out, error)) from error


def _write_models(
    bundle: Bundle,
    plans: Mapping[str, EngineSidecar],
    staging: Path,
    options: RepositoryOptions,
) -> Iterator[str]:
    """Write every model, and yield its name."""
    if options.graphs != "in-process":
        for graph in bundle.graphs:
            name = f"{options.prefix}_{graph}"
            folder = staging / name
            (folder / VERSION).mkdir(parents=True)
            _write_graph(bundle, graph, plans.get(graph), folder, options)
            yield name
    name = f"{options.prefix}_{STREAM}"
    _write_stream(bundle, plans, staging / name, name, options)
    yield name


def _write_graph(
    bundle: Bundle,
    graph: str,
    plan: EngineSidecar | None,
    folder: Path,
    options: RepositoryOptions,
) -> None:
    if plan is None:
        for file in bundle.onnx_entries(graph):
            # A model with weights beside it names their file.
            copied = "model.onnx" if file == f"{graph}.onnx" else file
            _copy(bundle, file, folder / VERSION / copied)
        backend = {"backend": "onnxruntime", "default_model_filename": "model.onnx"}
    else:
        target = folder / VERSION / "model.plan"
        shutil.copyfile(plan_file(bundle.path, TARGET, graph), target)
        _require_hash(target, plan.plan_sha256)
        backend = {"backend": "tensorrt", "default_model_filename": "model.plan"}
    profiles = 1 if plan is None else len(plan.profiles)
    text = graph_config(folder.name, bundle.graphs[graph], backend, options.device, profiles)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _write_stream(
    bundle: Bundle,
    plans: Mapping[str, EngineSidecar],
    folder: Path,
    name: str,
    options: RepositoryOptions,
) -> None:
    inner = folder / VERSION / BUNDLE
    inner.mkdir(parents=True)
    in_process = options.graphs == "in-process"
    for file in bundle.manifest.files if in_process else (TOKENIZER,):
        _copy(bundle, file, inner / file)
    shutil.copyfile(bundle.path / MANIFEST, inner / MANIFEST)
    for graph in plans:
        # The sizes that the plans accept.
        sidecar = sidecar_file(plan_file(inner, TARGET, graph))
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sidecar_file(plan_file(bundle.path, TARGET, graph)), sidecar)
    needed = "rvos-deploy[cpu]" if in_process else "rvos-deploy"
    model = MODEL.format(packages=list(options.packages), needed=needed)
    (folder / VERSION / "model.py").write_text(model, encoding="utf-8")
    parameters = {
        "schema": FORM,
        "graphs": options.graphs,
        "prefix": options.prefix,
        "streams": str(options.streams),
        "expressions": str(options.expressions),
        "instances": str(options.instances),
        "idle_seconds": f"{options.idle_seconds:g}",
        "backend": options.backend,
        "device": options.device,
    }
    text = stream_config(
        name,
        parameters,
        streams=options.streams,
        instances=options.instances,
        idle_seconds=options.idle_seconds,
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _copy(bundle: Bundle, file: str, target: Path) -> None:
    target.write_bytes(bundle.read(file))
    _require_hash(target, bundle.manifest.files[file].sha256)


def _require_hash(target: Path, needed: str) -> None:
    if sha256_file(target) != needed:
        raise ParityError(
            f"{target.name} of {target.parent.parent.name} was not written as it is in the bundle; "
            "check the disk, and export again"
        )


def _needs(plans: Mapping[str, EngineSidecar], options: RepositoryOptions) -> tuple[str, ...]:
    package = "rvos-deploy[cpu]" if options.graphs == "in-process" else "rvos-deploy"
    place = f"{package} in the Python of its Python back end"
    if options.packages:
        place = f"{package} in {', '.join(options.packages)}"
    lines = [f"the server needs {place}"]
    if plans:
        lines.append(server_needs(plans))
    return tuple(lines)
