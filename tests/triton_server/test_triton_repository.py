"""A Triton repository: its configurations, its files, and its sequence model."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.files import sha256_file
from rvos_deploy.parity.golden_vectors import read_golden_clip
from rvos_deploy.rle import decode
from rvos_deploy.triton.repository import RepositoryOptions, export_repository

sys.path.insert(0, str(Path(__file__).parent))
import triton_python_backend_utils as pb_utils

OUTPUTS = ["DECIDED", "INDEX", "EXPRESSION", "TEXT", "SCORE", "BOX", "RLE", "MASK"]


def read_config(folder: Path) -> Any:
    """Parse a configuration by Triton's own schema."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


@pytest.fixture(scope="module", params=["pan2024", "online_refer"])
def source(request: pytest.FixtureRequest) -> Path:
    if request.param == "pan2024":
        return open_bundle("tiny").path
    return request.getfixturevalue("online_refer_bundle")


def test_every_config_has_the_form_of_the_schema(source: Path, tmp_path: Path) -> None:
    names = export_repository(source, tmp_path / "r", RepositoryOptions(device="gpu", prefix="m"))
    bundle = open_bundle(source)
    assert names == [*(f"m_{graph}" for graph in bundle.graphs), "m_stream"]
    types = {"bool": "BOOL", "uint8": "UINT8", "int64": "INT64", "float32": "FP32"}
    for graph, spec in bundle.graphs.items():
        folder = tmp_path / "r" / f"m_{graph}"
        config = read_config(folder)
        assert (config.name, config.backend, config.max_batch_size) == (
            f"m_{graph}", "onnxruntime", 0,
        )  # fmt: skip
        for ports, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
            assert [port.name for port in ports] == [tensor.name for tensor in tensors]
            for port, tensor in zip(ports, tensors, strict=True):
                kind = type(port).DESCRIPTOR.fields_by_name["data_type"].enum_type
                name = kind.values_by_number[port.data_type].name
                assert name == f"TYPE_{types[tensor.dtype]}"
                dims = [dim if isinstance(dim, int) else -1 for dim in tensor.shape]
                assert list(port.dims) == (dims or [1])
                assert port.HasField("reshape") is (not dims)
        assert config.instance_group[0].count == 1
        for file, entry in bundle.onnx_entries(graph).items():
            copied = "model.onnx" if file.endswith(".onnx") else file
            assert sha256_file(folder / "1" / copied) == entry.sha256

    stream = read_config(tmp_path / "r" / "m_stream")
    assert stream.backend == "python"
    batching = stream.sequence_batching
    assert batching.oldest.max_candidate_sequences == 16
    assert batching.max_sequence_idle_microseconds == 60_000_000
    assert [control.name for control in batching.control_input] == ["START", "END", "CORRID"]
    assert [port.name for port in stream.output] == OUTPUTS
    assert all(port.optional for port in stream.input)
    assert stream.parameters["graphs"].string_value == "onnx"


def test_names_in_a_config_are_escaped(tmp_path: Path) -> None:
    for wrong in ("", "a b", 'a"', "1a", "../a"):
        with pytest.raises(InputError, match="must begin with a letter"):
            export_repository("tiny", tmp_path / "r", RepositoryOptions(prefix=wrong))


class Server:
    """What a server does with a repository, one request after the other."""

    def __init__(self, repository: Path, prefix: str = "rvos") -> None:
        self.config = read_config(repository / f"{prefix}_stream")
        pb_utils.models.clear()
        for folder in repository.glob(f"{prefix}_*"):
            if (folder / "1" / "model.onnx").is_file():
                pb_utils.models[folder.name] = _runner(folder / "1" / "model.onnx")
        folder = repository / f"{prefix}_stream"
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.TritonPythonModel()
        parameters = {
            key: {"string_value": one.string_value} for key, one in self.config.parameters.items()
        }
        self.model.initialize(
            {
                "model_config": json.dumps({"parameters": parameters}),
                "model_repository": str(folder),
                "model_version": "1",
            }
        )

    def ask(
        self,
        correlation: int,
        frame: np.ndarray | None = None,
        texts: list[str] | None = None,
        *,
        start: bool = False,
        end: bool = False,
        settings: object = None,
        outputs: list[str] = OUTPUTS,
    ) -> dict[str, np.ndarray]:
        """Send a request; return the outputs, or raise the error's text."""
        inputs = [
            pb_utils.Tensor("START", np.array([start], np.int32)),
            pb_utils.Tensor("END", np.array([end], np.int32)),
            pb_utils.Tensor("CORRID", np.array([correlation], np.uint64)),
        ]
        if frame is not None:
            inputs.append(pb_utils.Tensor("FRAME", frame))
        if texts is not None:
            encoded = np.empty(len(texts), dtype=np.object_)
            encoded[:] = [text.encode() for text in texts]
            inputs.append(pb_utils.Tensor("EXPRESSIONS", encoded))
        if settings is not None:
            text = settings if isinstance(settings, str) else json.dumps(settings)
            inputs.append(pb_utils.Tensor("SETTINGS", np.array([text.encode()], np.object_)))
        request = pb_utils.InferenceRequest("", outputs, inputs)
        (response,) = self.model.execute([request])
        if response.has_error():
            raise ValueError(response.error().message())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def _runner(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


@pytest.fixture(params=["onnx", "in-process"])
def server(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Iterator[Server]:
    options = RepositoryOptions(graphs=request.param, backend="onnxruntime", streams=2)
    export_repository(source, tmp_path / "models", options)
    one = Server(tmp_path / "models")
    yield one
    one.model.finalize()


def test_masks_are_the_golden_ones(server: Server, source: Path) -> None:
    clip = read_golden_clip(open_bundle(source))
    for number, frame in enumerate(clip.frames):
        first = number == 0
        found = server.ask(
            7,
            frame,
            clip.texts if first else None,
            start=first,
            settings=clip.settings if first else None,
        )
        assert list(found["DECIDED"]) == [number]
        assert list(found["INDEX"]) == [number] * len(clip.texts)
        assert list(found["EXPRESSION"]) == list(range(len(clip.texts)))
        assert [text.decode() for text in found["TEXT"]] == clip.texts
        # A file's own ONNX Runtime session may sum in another order: pixels at edges.
        assert (found["MASK"] != clip.masks[number]).mean() < 1e-3
        for mask, rle, box in zip(found["MASK"], found["RLE"], found["BOX"], strict=True):
            assert (decode(json.loads(rle)) == mask).all()
            left, top, width, height = box
            assert mask[top : top + height, left : left + width].any() == mask.any()
    assert clip.masks.any()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)


@pytest.fixture
def tiny_server(tmp_path: Path) -> Iterator[Server]:
    options = RepositoryOptions(backend="onnxruntime", streams=2)
    export_repository("tiny", tmp_path / "models", options)
    one = Server(tmp_path / "models")
    yield one
    one.model.finalize()


SMALL = {"size": [64, 96], "fallback": "top1"}


def test_expressions_come_and_go(tiny_server: Server, frames: np.ndarray) -> None:
    first = tiny_server.ask(1, frames[0], ["a", "b"], start=True, settings=SMALL)
    assert list(first["EXPRESSION"]) == [0, 1]
    second = tiny_server.ask(1, frames[1], ["b", "c"])
    assert list(second["EXPRESSION"]) == [1, 2]
    third = tiny_server.ask(1, frames[2])
    assert [text.decode() for text in third["TEXT"]] == ["b", "c"]
    nothing = tiny_server.ask(1, frames[3], [])
    assert list(nothing["DECIDED"]) == [3]
    assert nothing["MASK"].shape[0] == len(nothing["SCORE"]) == 0


def test_waiting_frames_come_at_the_end(tiny_server: Server, frames: np.ndarray) -> None:
    settings = {**SMALL, "lookahead": 2}
    decided = []
    for number, frame in enumerate(frames):
        texts = ["a"] if not number else None
        found = tiny_server.ask(1, frame, texts, start=not number, settings=settings)
        decided.append(list(found["DECIDED"]))
    assert decided == [[], [], [0], [1]]
    last = tiny_server.ask(1, end=True, outputs=["DECIDED", "MASK", "RLE"])
    assert set(last) == {"DECIDED", "MASK", "RLE"}
    assert list(last["DECIDED"]) == [2, 3]
    assert last["MASK"].shape == (2, 64, 96)
    with pytest.raises(ValueError, match="sequence 1 is not open"):
        tiny_server.ask(1, frames[0])


def test_sequences_do_not_mix(tiny_server: Server, frames: np.ndarray) -> None:
    def alone(order: list[int]) -> list[np.ndarray]:
        found = []
        for number, index in enumerate(order):
            texts = ["a", "b"] if not number else None
            answer = tiny_server.ask(9, frames[index], texts, start=not number, settings=SMALL)
            found.append(answer["MASK"])
        tiny_server.ask(9, end=True)
        return found

    orders = ([0, 1, 2], [3, 2, 1])
    expected = [alone(order) for order in orders]
    for number in range(3):
        for sequence, order in enumerate(orders):
            texts = ["a", "b"] if not number else None
            answer = tiny_server.ask(
                sequence, frames[order[number]], texts, start=not number, settings=SMALL
            )
            assert (answer["MASK"] == expected[sequence][number]).all()
    with pytest.raises(ValueError, match="2 streams are open"):
        tiny_server.ask(5, frames[0], ["a"], start=True)
    tiny_server.ask(0, end=True)
    tiny_server.ask(5, frames[0], ["a"], start=True, settings=SMALL)


def test_an_error_ends_its_own_sequence_only(tiny_server: Server, frames: np.ndarray) -> None:
    tiny_server.ask(1, frames[0], ["a"], start=True, settings=SMALL)
    for settings, found in (
        ({"colour": 1}, "colour"),
        ("{", "SETTINGS is wrong"),
        ({"threshold": 2}, "threshold must lie in 0..1"),
        ({"size": [3, 3]}, "multiple"),
    ):
        with pytest.raises(ValueError, match=found):
            tiny_server.ask(2, frames[0], ["a"], start=True, settings=settings)
    with pytest.raises(ValueError, match="empty"):
        tiny_server.ask(2, frames[0], [" "], start=True, settings=SMALL)
    with pytest.raises(ValueError, match="uint8"):
        tiny_server.ask(2, frames[0].astype(np.float32), ["a"], start=True, settings=SMALL)
    assert list(tiny_server.ask(1, frames[1])["DECIDED"]) == [1]
    pb_utils.models.clear()
    with pytest.raises(ValueError, match="Triton's model rvos_backbone failed: unknown model"):
        tiny_server.ask(1, frames[2])


def test_idle_sequences_are_freed(
    tiny_server: Server, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_server.ask(1, frames[0], ["a"], start=True, settings=SMALL)
    tiny_server.ask(2, frames[0], ["a"], start=True, settings=SMALL)
    monkeypatch.setattr(tiny_server.model, "_idle_seconds", -1.0)
    with pytest.raises(ValueError, match="sequence 1 is not open"):
        tiny_server.ask(1, frames[1])


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
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    done = rvos("export-triton", "tiny", "--out", other, "--overwrite")
    assert "was not written by export-triton" in done.stderr
    assert (other / "notes.txt").read_text() == "mine"
    done = rvos("export-triton", "tiny", "--out", tmp_path / "plans", "--graphs", "plans")
    assert "run 'rvos-deploy build-engine" in done.stderr
    assert not (tmp_path / "plans").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"models", "mine"}


def test_a_changed_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    changed = tmp_path / "changed"
    shutil.copytree(tiny_bundle, changed)
    with (changed / "backbone.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    with pytest.raises(BundleError):
        export_repository(changed, tmp_path / "models", RepositoryOptions())
    assert not (tmp_path / "models").exists()
