"""What a Triton server does with a repository, one request after the other, in this process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import triton_python_backend_utils as pb_utils

OUTPUTS = ["DECIDED", "INDEX", "EXPRESSION", "TEXT", "SCORE", "BOX", "RLE", "MASK"]


class RefusedError(Exception):
    """A request was answered by an error."""


def read_config(folder: Path) -> Any:
    """Parse a configuration by Triton's own schema."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def strings(texts: Sequence[str | bytes]) -> np.ndarray:
    encoded = np.empty(len(texts), dtype=np.object_)
    encoded[:] = [text.encode() if isinstance(text, str) else text for text in texts]
    return encoded


class Server:
    """Load the models of a repository; graphs run in ONNX Runtime alone, by their files."""

    def __init__(self, repository: Path, prefix: str = "rvos") -> None:
        self.config = read_config(repository / f"{prefix}_stream")
        pb_utils.models.clear()
        for folder in repository.glob(f"{prefix}_*"):
            if (folder / "1" / "model.onnx").is_file():
                pb_utils.models[folder.name] = runner(folder / "1" / "model.onnx")
        folder = repository / f"{prefix}_stream"
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.model = module.TritonPythonModel()
        self.parameters = {
            key: {"string_value": one.string_value} for key, one in self.config.parameters.items()
        }
        self.folder = folder

    def load(self) -> Server:
        self.model.initialize(
            {
                "model_config": json.dumps({"parameters": self.parameters}),
                "model_repository": str(self.folder),
                "model_version": "1",
            }
        )
        return self

    def request(
        self,
        correlation: int,
        frame: np.ndarray | None = None,
        texts: Sequence[str | bytes] | None = None,
        *,
        start: bool = False,
        end: bool = False,
        settings: object = None,
        outputs: Sequence[str] = OUTPUTS,
    ) -> pb_utils.InferenceRequest:
        inputs = [
            pb_utils.Tensor("START", np.array([start], np.int32)),
            pb_utils.Tensor("END", np.array([end], np.int32)),
            pb_utils.Tensor("CORRID", np.array([correlation], np.uint64)),
        ]
        if frame is not None:
            inputs.append(pb_utils.Tensor("FRAME", frame))
        if texts is not None:
            inputs.append(pb_utils.Tensor("EXPRESSIONS", strings(texts)))
        if settings is not None:
            text = settings if isinstance(settings, str) else json.dumps(settings)
            inputs.append(pb_utils.Tensor("SETTINGS", strings([text])))
        return pb_utils.InferenceRequest("", outputs, inputs)

    def ask(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Send a request; return the outputs, or raise the error's text."""
        (response,) = self.model.execute([self.request(*args, **kwargs)])
        return outputs_of(response)


def outputs_of(response: pb_utils.InferenceResponse) -> dict[str, np.ndarray]:
    if response.has_error():
        raise RefusedError(response.error().message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def runner(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what runs an ONNX file by ONNX Runtime alone, without our kernel."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
