"""The command that compares a server with a bundle, against a server of Triton's own protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.parity.golden_vectors import GoldenClip, read_golden_clip

pytest.importorskip("tritonclient.grpc")
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


class GoldenServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answer with the golden masks, or with wrong ones, and remember the requests."""

    def __init__(self, clip: GoldenClip) -> None:
        self.masks = clip.masks.copy()
        self.requests: list[Any] = []
        self.third = ("BOOL", "MASK")
        """Kind and name of the output from the third request on."""

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if request.model_name != "rvos_stream":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model '{request.model_name}'")
        masks = self.masks[len(self.requests)]
        self.requests.append(request)
        kind, name = ("BOOL", "MASK") if len(self.requests) < 3 else self.third
        if kind == "half":
            masks = masks[:, ::2]
        answer = service_pb2.ModelInferResponse(raw_output_contents=[masks.tobytes()])
        shape = (*masks.shape[:2], masks.shape[2] + (kind == "cut"))
        datatype = "UINT8" if kind == "UINT8" else "BOOL"
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
        return answer


@pytest.fixture(scope="module")
def clip() -> GoldenClip:
    return read_golden_clip(open_bundle("tiny"))


@pytest.fixture
def golden(clip: GoldenClip) -> Iterator[tuple[GoldenServer, str]]:
    service, server = GoldenServer(clip), grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None)


def check(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rvos_deploy.triton.check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_server_with_the_bundles_masks_passes(
    golden: tuple[GoldenServer, str], clip: GoldenClip
) -> None:
    service, url = golden
    done = check("tiny", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 frames, 2 expressions: at most 0.0000% of a mask's pixels differ" in done.stdout
    first, last = service.requests[0], service.requests[-1]
    assert [i.name for i in first.inputs] == ["FRAME", "EXPRESSIONS", "SETTINGS"]
    assert json.loads(first.raw_input_contents[2][4:]) == {
        **clip.settings,
        "size": list(clip.settings["size"]),
    }
    assert last.raw_input_contents[0] == clip.frames[-1].tobytes()
    started = [one.parameters["sequence_start"].bool_param for one in service.requests]
    ended = [one.parameters["sequence_end"].bool_param for one in service.requests]
    assert started == [True, False, False, False, False] == ended[::-1]
    # Another check at the same time has a sequence of its own.
    numbers = {one.parameters["sequence_id"].int64_param for one in service.requests}
    assert len(numbers) == 1
    assert numbers.pop() > 2**20


def test_wrong_masks_exit_with_1(golden: tuple[GoldenServer, str]) -> None:
    service, url = golden
    service.masks[3, 1] = ~service.masks[3, 1]
    done = check("tiny", url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "at most 100.0000%" in done.stdout
    assert "the server's masks are not the bundle's (most in frame 3, " in done.stderr


def test_masks_of_another_shape_exit_with_1(golden: tuple[GoldenServer, str]) -> None:
    service, url = golden
    service.masks = np.ascontiguousarray(service.masks[:, :1])
    done = check("tiny", url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the server returned masks [5, 1, " in done.stderr


@pytest.mark.parametrize(
    ("third", "found"),
    [
        (("half", "MASK"), "for frame 0, and [2, "),
        (
            ("BOOL", "OTHER"),
            "the server returned no MASK for frame 2, and bool [E, H, W] is needed",
        ),
        (("UINT8", "MASK"), "the server returned a MASK of uint8 for frame 2"),
        (("cut", "MASK"), "the server returned a MASK that cannot be read (cannot reshape"),
    ],
)
def test_answers_of_another_size_or_without_masks_exit_with_1(
    golden: tuple[GoldenServer, str], third: tuple[str, str], found: str
) -> None:
    service, url = golden
    service.third = third
    done = check("tiny", url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert found in done.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:1", "nowhere.invalid:8001", "::"])
def test_no_server_is_one_line(url: str) -> None:
    done = check("tiny", url, "--seconds", "5")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "is tritonserver running there" in done.stderr


def test_another_name_is_one_line(golden: tuple[GoldenServer, str]) -> None:
    done = check("tiny", golden[1], "--name", "nobody")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no model 'nobody_stream'" in done.stderr
