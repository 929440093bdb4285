"""The client of docs/triton.md, against Triton's protocol in front of the sequence model."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import RefusedError, Server

pytest.importorskip("tritonclient.grpc")
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

PAGE = Path(__file__).parents[2] / "docs" / "triton.md"


class Bridge(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Pass a request of gRPC to the sequence model of a repository."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        arrays = {
            given.name: _array(given, raw)
            for given, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        texts, settings = arrays.get("EXPRESSIONS"), arrays.get("SETTINGS")
        try:
            found = self.server.ask(
                request.parameters["sequence_id"].int64_param,
                arrays.get("FRAME"),
                None if texts is None else list(texts),
                start=request.parameters["sequence_start"].bool_param,
                end=request.parameters["sequence_end"].bool_param,
                settings=None if settings is None else settings[0].decode(),
                outputs=[output.name for output in request.outputs],
            )
        except RefusedError as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        answer = service_pb2.ModelInferResponse()
        for name, array in found.items():
            answer.outputs.add(
                name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape
            )
            if array.dtype == np.object_:
                packed = serialize_byte_tensor(array)
                answer.raw_output_contents.append(packed.item() if packed.size else b"")
            else:
                answer.raw_output_contents.append(array.tobytes())
        return answer


def _array(given: Any, raw: bytes) -> np.ndarray:
    if given.datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(given.shape)
    return np.frombuffer(raw, triton_to_np_dtype(given.datatype)).reshape(given.shape)


@pytest.fixture
def url(tiny_server: Server) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Bridge(tiny_server), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_the_client_of_the_page_works(
    url: str, tiny_server: Server, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "video.mp4", 12)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = code.replace("localhost:8001", url)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*map(str, range(10)), "10", "10", "11", "11"]
    assert [" the ball " in line for line in lines[10:]] == [False, True, False, True]
    assert not tiny_server.model._sequences


def test_the_check_passes_through_the_whole_way(url: str) -> None:
    command = [sys.executable, "-m", "rvos_deploy.triton.check", "tiny", url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "at most 0.0" in done.stdout
