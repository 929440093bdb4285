"""A Triton repository: its configurations, its files, and what is never replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_server import OUTPUTS, Server, read_config
from stand_in_engines import add_engines

from rvos_deploy.bundle.engine_sidecar import EngineError, plan_file, read_sidecar, sidecar_file
from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.errors import BundleError, InputError, ParityError, RvosError
from rvos_deploy.files import sha256_file
from rvos_deploy.graph_io.graph_spec import GraphSpec, TensorSpec
from rvos_deploy.json_file import write_json
from rvos_deploy.triton import repository
from rvos_deploy.triton.config_text import graph_config
from rvos_deploy.triton.plans import within_profiles
from rvos_deploy.triton.repository import MARK, RepositoryOptions, export_repository

TYPES = {"bool": "BOOL", "uint8": "UINT8", "int64": "INT64", "float32": "FP32", "float16": "FP16"}


def check_ports(config: Any, spec: GraphSpec) -> None:
    """Compare a configuration's inputs and outputs with the contract of its graph."""
    for ports, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
        assert [port.name for port in ports] == [tensor.name for tensor in tensors]
        for port, tensor in zip(ports, tensors, strict=True):
            kind = type(port).DESCRIPTOR.fields_by_name["data_type"].enum_type
            assert kind.values_by_number[port.data_type].name == f"TYPE_{TYPES[tensor.dtype]}"
            shape = tensor.fixed_shape(spec.fixed)
            assert list(port.dims) == [dim if isinstance(dim, int) else -1 for dim in shape]


def test_every_config_has_the_form_of_the_schema(source: Path, tmp_path: Path) -> None:
    options = RepositoryOptions(device="gpu", prefix="m", instances=2)
    written = export_repository(source, tmp_path / "r", options)
    bundle = open_bundle(source)
    assert written.models == (*(f"m_{graph}" for graph in bundle.graphs), "m_stream")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {*written.models, MARK}
    for graph, spec in bundle.graphs.items():
        folder = tmp_path / "r" / f"m_{graph}"
        config = read_config(folder)
        assert (config.name, config.backend) == (f"m_{graph}", "onnxruntime")
        assert config.max_batch_size == 0
        check_ports(config, spec)
        (group,) = config.instance_group
        assert (group.count, group.kind) == (1, type(group).KIND_GPU)
        for file, entry in bundle.onnx_entries(graph).items():
            copied = "model.onnx" if file.endswith(".onnx") else file
            assert sha256_file(folder / "1" / copied) == entry.sha256

    stream = read_config(tmp_path / "r" / "m_stream")
    assert stream.backend == "python"
    assert stream.instance_group[0].count == 2
    batching = stream.sequence_batching
    assert batching.oldest.max_candidate_sequences == 16
    assert batching.max_sequence_idle_microseconds == 60_000_000
    assert [control.name for control in batching.control_input] == ["START", "END", "CORRID"]
    assert not stream.model_transaction_policy.decoupled
    assert [port.name for port in stream.output] == OUTPUTS
    assert all(port.optional for port in stream.input)
    assert stream.parameters["graphs"].string_value == "onnx"


@pytest.mark.parametrize("kind", ["tiny_bundle_fp16", "static_bundle"])
def test_half_precision_and_fixed_sizes_have_their_types_and_sizes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = open_bundle(request.getfixturevalue(kind))
    export_repository(bundle.path, tmp_path / "r", RepositoryOptions())
    for graph, spec in bundle.graphs.items():
        check_ports(read_config(tmp_path / "r" / f"rvos_{graph}"), spec)
    found = read_config(tmp_path / "r" / "rvos_frame_decoder").input[0]
    if kind == "static_bundle":
        assert list(found.dims) == [1, 40, 16, 24]
    else:
        assert found.data_type == 10  # TYPE_FP16


def test_a_scalar_is_refused_because_triton_passes_none() -> None:
    spec = GraphSpec("g", (TensorSpec("x", "float32", ()),), (), (), 1e-4)
    with pytest.raises(BundleError, match="x is a scalar"):
        graph_config("m", spec, {"backend": "onnxruntime"}, "auto")


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "r"
    for name in ("", "a b", 'a"', "1a", "../a", "a" * 65):
        with pytest.raises(InputError, match="must begin with a letter"):
            export_repository("tiny", out, RepositoryOptions(prefix=name))
    with pytest.raises(InputError, match="must be an absolute path"):
        export_repository("tiny", out, RepositoryOptions(packages=("site",)))
    with pytest.raises(InputError, match="--graphs plans run on GPUs"):
        export_repository("tiny", out, RepositoryOptions(graphs="plans", device="cpu"))
    with pytest.raises(InputError, match="add --graphs in-process"):
        export_repository("tiny", out, RepositoryOptions(backend="openvino"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def planned(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle of links with a plan of each graph, which nothing can load."""
    return add_engines(tiny_bundle, tmp_path / "planned")


def change(bundle: Bundle, graph: str, **fields: Any) -> None:
    sidecar = msgspec.structs.replace(read_sidecar(bundle.path, "tensorrt", graph), **fields)
    write_json(sidecar_file(plan_file(bundle.path, "tensorrt", graph)), sidecar.as_dict())


PLANS = RepositoryOptions(graphs="plans")


def test_plans_are_copied_with_the_sizes_that_they_accept(planned: Bundle, tmp_path: Path) -> None:
    two = read_sidecar(planned.path, "tensorrt", "mask_head").profiles * 2
    change(planned, "mask_head", profiles=two)
    written = export_repository(planned.path, tmp_path / "r", PLANS)
    assert written.needs[1] == "the plans need TensorRT 11.4.0.106, and stand-in"
    for graph, spec in planned.graphs.items():
        folder = tmp_path / "r" / f"rvos_{graph}"
        config = read_config(folder)
        assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
        check_ports(config, spec)
        profiles = ["0", "1"] if graph == "mask_head" else []
        assert list(config.instance_group[0].profile) == profiles
        sidecar = read_sidecar(planned.path, "tensorrt", graph)
        assert sha256_file(folder / "1" / "model.plan") == sidecar.plan_sha256
    server = Server(tmp_path / "r").load()
    try:
        with pytest.raises(Exception, match="sides up to 256"):
            server.ask(1, start=True, settings={"size": [288, 288]})
    finally:
        server.model.finalize()


def test_a_stream_pads_to_the_least_sizes_of_the_plans(planned: Bundle) -> None:
    profile = dict(read_sidecar(planned.path, "tensorrt", "text_encoder").profiles[0])
    wider = ({**profile, "L": (8, 16, 32)}, {**profile, "L": (16, 16, 64)})
    change(planned, "text_encoder", profiles=wider)
    axis = within_profiles(planned).graphs["text_encoder"].axis("L")
    assert axis is not None
    assert (axis.minimum, axis.maximum) == (8, 64)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"parity": None, "parity_reason": "no GPU"}, "no parity results"),
        ({"parity": ({"name": "x", "passed": False},)}, "failed 1 of 1 parity checks"),
        ({"stripped": True}, "lacks its weights"),
        ({"tensorrt_version": "10.9.0.34"}, "TensorRT 10.9.0.34 and 11.4.0.106"),
        ({"onnx_sha256": {"mask_head.onnx": "0" * 64}}, "was built from another mask_head.onnx"),
        ({"plan_sha256": "0" * 64}, "was changed since it was built"),
    ],
)
def test_plans_that_must_not_be_served_are_refused(
    planned: Bundle, tmp_path: Path, fields: dict[str, Any], found: str
) -> None:
    change(planned, "mask_head", **fields)
    with pytest.raises(BundleError, match=found) as error:
        export_repository(planned.path, tmp_path / "r", PLANS)
    assert "run: rvos-deploy build-engine" in str(error.value)
    assert not (tmp_path / "r").exists()


def test_a_missing_plan_names_the_command(planned: Bundle, tmp_path: Path) -> None:
    plan = plan_file(planned.path, "tensorrt", "backbone")
    plan.unlink()
    with pytest.raises(EngineError, match=r"backbone.plan is missing.*build-engine"):
        export_repository(planned.path, tmp_path / "r", PLANS)
    with pytest.raises(EngineError, match="no tensorrt engine of backbone"):
        export_repository("tiny", tmp_path / "r", PLANS)


def test_what_is_never_replaced(tmp_path: Path, rvos: Callable) -> None:
    out = tmp_path / "models"
    assert rvos("export-triton", "tiny", "--out", out).code == 0
    done = rvos("export-triton", "tiny", "--out", out)
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "pass --overwrite" in done.stderr
    again = rvos("export-triton", "tiny", "--out", out, "--overwrite", "--graphs", "in-process")
    assert again.code == 0
    assert [path.name for path in out.glob("rvos_*")] == ["rvos_stream"]
    assert "python -m rvos_deploy.triton.check tiny localhost:8001 --name rvos" in again.stdout

    # A model of somebody else in our repository.
    (out / "theirs").mkdir()
    done = rvos("export-triton", "tiny", "--out", out, "--overwrite")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "also holds theirs, which export-triton did not write" in done.stderr
    assert (out / "theirs").is_dir()

    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for options in ([], ["--overwrite"]):
        done = rvos("export-triton", "tiny", "--out", other, *options)
        assert "was not written by export-triton" in done.stderr
    assert (other / "notes.txt").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("mine")
    done = rvos("export-triton", "tiny", "--out", file, "--overwrite")
    assert (done.code, file.read_text()) == (2, "mine")
    done = rvos("export-triton", "tiny", "--out", tmp_path / "plans", "--graphs", "plans")
    assert "run: rvos-deploy build-engine" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"models", "mine", "file"}


def test_what_was_changed_by_hand_is_never_replaced(tmp_path: Path, rvos: Callable) -> None:
    out = tmp_path / "models"
    call = ("export-triton", "tiny", "--out", out, "--graphs", "in-process", "--overwrite")
    assert rvos(*call).code == 0
    config, second = out / "rvos_stream" / "config.pbtxt", out / "rvos_stream" / "2"

    def refused(*found: str) -> None:
        done = rvos(*call)
        assert (done.code, done.stderr.count("\n")) == (2, 1)
        for text in (*found, "was changed by hand, so it is not replaced", "choose another --out"):
            assert text in done.stderr

    written = config.read_text()
    edited = written + '\nparameters { key: "EXECUTION_ENV_PATH" value { string_value: "/e" } }\n'
    config.write_text(edited)
    refused("rvos_stream/config.pbtxt (changed); move it away")
    assert config.read_text() == edited
    config.write_text(written)

    second.mkdir()
    for name in ("model.py", "a", "b", "c"):
        (second / name).write_text("mine")
    refused("rvos_stream/2/a (added), rvos_stream/2/b (added), rvos_stream/2/c (added) and 1 more;")
    assert (second / "model.py").read_text() == "mine"
    shutil.rmtree(second)

    # Links: a version folder, and a file of ours that lies elsewhere now.
    (tmp_path / "elsewhere").mkdir()
    second.symlink_to(tmp_path / "elsewhere")
    refused("rvos_stream/2 (added)")
    second.unlink()
    config.rename(tmp_path / "elsewhere" / "config.pbtxt")
    config.symlink_to(tmp_path / "elsewhere" / "config.pbtxt")
    refused("rvos_stream/config.pbtxt (changed)")
    config.unlink()

    # A missing file is not lost, and Python itself writes its cache.
    (out / "rvos_stream" / "1" / "__pycache__").mkdir()
    (out / "rvos_stream" / "1" / "__pycache__" / "model.cpython-312.pyc").write_bytes(b"x")
    assert rvos(*call).code == 0
    assert config.read_text() == written


def test_a_repository_of_an_older_version_has_no_hashes(tmp_path: Path) -> None:
    out, options = tmp_path / "r", RepositoryOptions(graphs="in-process", overwrite=True)
    export_repository("tiny", out, options)
    mark = json.loads((out / MARK).read_text())
    for files, found in ((None, "an older export-triton"), (1, "not written by export-triton")):
        changed = {**mark, "files": files}
        (out / MARK).write_text(json.dumps(changed))
        with pytest.raises(InputError, match=found):
            export_repository("tiny", out, options)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"schema": "x", "models": []}', '{"schema": 1}', "\\xff"]
)
def test_a_folder_with_another_mark_is_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / MARK).write_text(content)
    with pytest.raises(InputError, match="not written by export-triton"):
        export_repository("tiny", tmp_path / "r", RepositoryOptions(overwrite=True))


def test_an_empty_folder_and_a_link_are_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    options = RepositoryOptions(graphs="in-process")
    export_repository("tiny", tmp_path / "link", options)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "rvos_stream" / "config.pbtxt").is_file()


def test_nothing_stays_of_an_export_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    export_repository("tiny", out, RepositoryOptions(graphs="in-process"))
    before = sorted(out.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(repository, "sha256_file", lambda path: "0" * 64)
        with pytest.raises(ParityError, match="was not written as it is in the bundle"):
            export_repository("tiny", out, RepositoryOptions(overwrite=True))
    assert sorted(out.rglob("*")) == before
    with monkeypatch.context() as patch:
        patch.setattr(repository, "graph_config", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
        with pytest.raises(InputError, match="cannot be written"):
            export_repository("tiny", out, RepositoryOptions(overwrite=True))
    assert sorted(out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_repository_is_not_written_over_its_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    with pytest.raises(RvosError):
        export_repository(copy, copy, RepositoryOptions(overwrite=True))
    open_bundle(copy)


@pytest.mark.parametrize("file", ["backbone.onnx", "tokenizer.json", "manifest.json"])
def test_a_changed_bundle_is_refused(tiny_bundle: Path, tmp_path: Path, file: str) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_bundle, changed)
    with (changed / file).open("r+b") as opened:
        opened.seek(100)
        opened.write(b"\x00x")
    with pytest.raises(BundleError):
        export_repository(changed, tmp_path / "models", RepositoryOptions())
    assert not (tmp_path / "models").exists()


def test_the_model_says_what_the_servers_python_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    export_repository("tiny", tmp_path / "r", RepositoryOptions(packages=("/opt/rvos",)))
    text = (tmp_path / "r" / "rvos_stream" / "1" / "model.py").read_text()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "rvos_deploy.triton.stream_model", None)
    with pytest.raises(ImportError, match=r"needs rvos-deploy; pip install it there, or"):
        exec(compile(text, "model.py", "exec"), {})
    assert sys.path[0] == "/opt/rvos"


def test_the_mark_names_what_was_written(tmp_path: Path) -> None:
    written = export_repository("tiny", tmp_path / "r", RepositoryOptions())
    mark = json.loads((tmp_path / "r" / MARK).read_text())
    assert tuple(mark["models"]) == written.models
    files = {file: tmp_path / "r" / file for file in mark["files"]}
    assert mark["files"] == {name: sha256_file(file) for name, file in files.items()}
    found = {path for path in (tmp_path / "r").rglob("*") if path.is_file()}
    assert {*files.values()} == found - {tmp_path / "r" / MARK}
    assert mark["manifest_sha256"] == sha256_file(open_bundle("tiny").path / "manifest.json")
