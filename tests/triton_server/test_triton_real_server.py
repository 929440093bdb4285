"""The repository in a real tritonserver, with the Python back end alone.

PyPI's ``nvidia-pytriton`` brings such a server (docs/triton.md says how it is unpacked).
``RVOS_TRITON_SERVER`` is its folder, and ``RVOS_TRITON_PACKAGES`` one with what rvos-deploy needs.

This server has no ONNX Runtime back end. So the graphs' models, which keep their configurations
otherwise, run by ONNX Runtime in Python models of their own, and the stream reaches them by BLS.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import Server, strings

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.parity.golden_vectors import read_golden_clip
from rvos_deploy.rle import decode
from rvos_deploy.triton.repository import RepositoryOptions, export_repository

HOME, PACKAGES = os.environ.get("RVOS_TRITON_SERVER"), os.environ.get("RVOS_TRITON_PACKAGES")
pytestmark = pytest.mark.skipif(
    not (HOME and PACKAGES), reason="RVOS_TRITON_SERVER and RVOS_TRITON_PACKAGES are not set"
)
ROOT = Path(__file__).parents[2]
IDLE_SECONDS = 3.0
SMALL = {"size": [64, 96], "fallback": "top1"}
GRAPH_MODEL = """
import os, sys
sys.path[:0] = {packages!r}
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.names = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        answers = []
        for request in requests:
            inputs = {{tensor.name(): tensor.as_numpy() for tensor in request.inputs()}}
            found = self.session.run(self.names, inputs)
            outputs = [pb_utils.Tensor(name, array) for name, array in zip(self.names, found)]
            answers.append(pb_utils.InferenceResponse(outputs))
        return answers
"""


@dataclass
class Tritonserver:
    url: str
    log: Path
    process: subprocess.Popen

    def ask(
        self,
        model: str,
        sequence: int,
        frame: np.ndarray | None = None,
        texts: Sequence[str] | None = None,
        *,
        start: bool = False,
        end: bool = False,
        settings: object = None,
        outputs: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        import tritonclient.grpc as client

        def tensor(name: str, array: np.ndarray, kind: str) -> Any:
            made = client.InferInput(name, list(array.shape), kind)
            made.set_data_from_numpy(array)
            return made

        inputs = []
        if frame is not None:
            inputs.append(tensor("FRAME", frame, "UINT8"))
        if texts is not None:
            inputs.append(tensor("EXPRESSIONS", strings(texts), "BYTES"))
        if settings is not None:
            inputs.append(tensor("SETTINGS", strings([json.dumps(settings)]), "BYTES"))
        with client.InferenceServerClient(self.url) as server:
            answer = server.infer(
                model,
                inputs,
                outputs=[client.InferRequestedOutput(name) for name in outputs] or None,
                sequence_id=sequence,
                sequence_start=start,
                sequence_end=end,
                client_timeout=60,
            )
        names = [output.name for output in answer.get_response().outputs]
        return {name: answer.as_numpy(name) for name in names}

    def check(self, bundle: str | Path, name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "rvos_deploy.triton.check", bundle, self.url]
        return subprocess.run([*command, "--name", name], capture_output=True, text=True)


def run_graphs_in_python(repository: Path, packages: list[str]) -> None:
    """Replace the back end of the graphs' models, and nothing else of their configurations."""
    for onnx in repository.glob("*/1/model.onnx"):
        config = onnx.parents[1] / "config.pbtxt"
        text = config.read_text()
        assert text.count('backend: "onnxruntime"') == 1
        text = text.replace('backend: "onnxruntime"', 'backend: "python"')
        config.write_text(text.replace('"model.onnx"', '"model.py"'))
        (onnx.parent / "model.py").write_text(GRAPH_MODEL.format(packages=packages))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, online_refer_bundle: Path
) -> Iterator[Tritonserver]:
    """Serve ``rvos`` and ``other`` by BLS, and ``local`` and ``two`` in process."""
    assert HOME is not None
    assert PACKAGES is not None
    folder = tmp_path_factory.mktemp("triton")
    packages = (str(ROOT), str(Path(PACKAGES).resolve()))
    kinds = {
        "rvos": ("tiny", {"idle_seconds": IDLE_SECONDS, "streams": 4}),
        "other": (online_refer_bundle, {}),
        "local": ("tiny", {"graphs": "in-process", "backend": "onnxruntime"}),
        "two": ("tiny", {"graphs": "in-process", "backend": "onnxruntime", "instances": 2}),
    }
    for name, (bundle, fields) in kinds.items():
        options = RepositoryOptions(prefix=name, packages=packages, **fields)
        export_repository(bundle, folder / name, options)
        run_graphs_in_python(folder / name, [packages[1]])
    http, grpc = free_ports(2)
    log, prefix = folder / "log", f"rvos-{grpc}-"
    command = [
        f"{HOME}/bin/tritonserver",
        *(f"--model-repository={folder / name}" for name in kinds),
        f"--backend-directory={HOME}/backends",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        for _ in range(1200):
            if "Started HTTPService" in log.read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()[-4000:]
        yield Tritonserver(f"localhost:{grpc}", log, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        # A process that is killed leaves its shared memory.
        for left in Path("/dev/shm").glob(f"{prefix}*"):
            left.unlink()


def test_every_model_is_ready(server: Tritonserver) -> None:
    ready = re.findall(r"^\| (\w+) +\| 1 +\| READY", server.log.read_text(), re.MULTILINE)
    graphs = [*open_bundle("tiny").graphs]
    assert {f"rvos_{name}" for name in [*graphs, "stream"]} <= set(ready)
    assert {"other_stream", "other_frame_decoder", "local_stream", "two_stream"} <= set(ready)


@pytest.mark.parametrize("name", ["rvos", "other", "local", "two"])
def test_the_check_passes(server: Tritonserver, name: str, online_refer_bundle: Path) -> None:
    bundle = online_refer_bundle if name == "other" else "tiny"
    done = server.check(bundle, name)
    assert (done.returncode, done.stderr) == (0, "")
    assert "at most 0.0" in done.stdout
    if name == "local":
        wrong = server.check(online_refer_bundle, name)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
        assert "the server's masks are not the bundle's" in wrong.stderr


@pytest.mark.parametrize("name", ["rvos", "other"])
def test_bls_gives_the_masks_of_the_test_server_bit_by_bit(
    server: Tritonserver, name: str, online_refer_bundle: Path, tmp_path: Path
) -> None:
    source = online_refer_bundle if name == "other" else open_bundle("tiny").path
    clip = read_golden_clip(open_bundle(source))
    export_repository(source, tmp_path / "models", RepositoryOptions())
    fake = Server(tmp_path / "models").load()
    for number, frame in enumerate(clip.frames):
        first = number == 0
        texts, settings = (clip.texts, clip.settings) if first else (None, None)
        end = number == len(clip.frames) - 1
        there = server.ask(
            f"{name}_stream", 77, frame, texts, start=first, end=end, settings=settings
        )
        here = fake.ask(77, frame, texts, start=first, end=end, settings=settings)
        assert there.keys() == here.keys()
        for output, array in here.items():
            assert there[output].dtype == array.dtype or output in ("TEXT", "RLE")
            assert (there[output] == array).all(), output
    fake.model.finalize()


@pytest.mark.parametrize("model", ["rvos_stream", "two_stream"])
def test_sequences_are_interleaved_and_expressions_change(
    server: Tritonserver, model: str, frames: np.ndarray
) -> None:
    def run(sequences: dict[int, list[int]]) -> dict[int, list[np.ndarray]]:
        found: dict[int, list[np.ndarray]] = {number: [] for number in sequences}
        for step in range(3):
            for number, order in sequences.items():
                texts = [["a", "b"], ["b", "c"], None][step]
                answer = server.ask(
                    model,
                    number,
                    frames[order[step]],
                    texts,
                    start=step == 0,
                    end=step == 2,
                    settings=SMALL if step == 0 else None,
                )
                assert list(answer["DECIDED"]) == [step]
                assert list(answer["EXPRESSION"]) == ([0, 1] if step == 0 else [1, 2])
                found[number].append(answer["MASK"])
        return found

    orders = {11: [0, 1, 2], 12: [3, 2, 1], 13: [2, 0, 3]}
    together = run(orders)
    for number, order in orders.items():
        alone = run({number: order})[number]
        assert all((a == b).all() for a, b in zip(alone, together[number], strict=True))


def test_lookahead_decides_the_rest_at_the_end(server: Tritonserver, frames: np.ndarray) -> None:
    decided = []
    for number, frame in enumerate(frames):
        answer = server.ask(
            "rvos_stream",
            21,
            frame,
            None if number else ["a"],
            start=not number,
            settings=None if number else {**SMALL, "lookahead": 2},
            outputs=["DECIDED", "RLE"],
        )
        assert set(answer) == {"DECIDED", "RLE"}
        decided.append(list(answer["DECIDED"]))
    last = server.ask("rvos_stream", 21, end=True, outputs=["DECIDED", "RLE"])
    assert [*decided, list(last["DECIDED"])] == [[], [], [0], [1], [2, 3]]
    assert [decode(json.loads(one)).shape for one in last["RLE"]] == [(64, 96)] * 2


def test_an_error_belongs_to_its_request(server: Tritonserver, frames: np.ndarray) -> None:
    from tritonclient.utils import InferenceServerException

    server.ask("rvos_stream", 31, frames[0], ["a"], start=True, settings=SMALL)
    for request, found in (
        ({"frame": frames[1], "texts": [" "]}, "empty"),
        ({"frame": frames[1], "settings": SMALL}, "first request"),
        ({"frame": frames[1], "texts": list("abcdefghijklmnopq")}, "at most 16 are followed"),
    ):
        with pytest.raises(InferenceServerException, match=found):
            server.ask("rvos_stream", 31, **request)
    assert list(server.ask("rvos_stream", 31, frames[1])["DECIDED"]) == [1]
    with pytest.raises(InferenceServerException, match="colour"):
        server.ask("rvos_stream", 32, frames[0], ["a"], start=True, settings={"colour": 1})
    with pytest.raises(InferenceServerException, match="sequence 32 is not open"):
        server.ask("rvos_stream", 32, frames[0])
    assert list(server.ask("rvos_stream", 31, frames[2], end=True)["DECIDED"]) == [2]
    with pytest.raises(InferenceServerException):
        server.ask("rvos_stream", 31, frames[3])


def test_idle_sequences_are_freed(server: Tritonserver, frames: np.ndarray) -> None:
    server.ask("rvos_stream", 4041, frames[0], ["a"], start=True, settings=SMALL)
    for _ in range(400):
        if "freed sequence 4041, which was idle" in server.log.read_text():
            break
        time.sleep(0.1)
    assert "freed sequence 4041, which was idle" in server.log.read_text()


def test_more_sequences_than_places_wait(server: Tritonserver, frames: np.ndarray) -> None:
    # Four have a place. The fifth waits in Triton until the first is idle.
    for sequence in range(51, 56):
        found = server.ask("rvos_stream", sequence, frames[0], ["a"], start=True, settings=SMALL)
        assert list(found["DECIDED"]) == [0]
    assert "freed sequence 51, which was idle" in server.log.read_text()
    server.ask("rvos_stream", 55, end=True)


def test_the_check_names_what_is_wrong(server: Tritonserver) -> None:
    done = server.check("tiny", "nobody")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nobody_stream" in done.stderr


def test_numpy_2_is_refused_by_a_server_that_misreads_it(tmp_path: Path) -> None:
    """Triton 2.51 (24.10) knows NumPy 1 alone; this environment has NumPy 2."""
    if int(np.__version__.split(".")[0]) < 2:
        pytest.skip("NumPy 1 is installed here")
    own = sysconfig.get_path("purelib")
    site = str(Path(np.__file__).parents[1])
    options = RepositoryOptions(
        graphs="in-process", backend="onnxruntime", packages=(str(ROOT), site, own)
    )
    export_repository("tiny", tmp_path / "models", options)
    http, grpc = free_ports(2)
    done = subprocess.run(
        [
            f"{HOME}/bin/tritonserver",
            f"--model-repository={tmp_path / 'models'}",
            f"--backend-directory={HOME}/backends",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--allow-metrics=false",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
    )
    assert done.returncode != 0
    assert "cannot pass arrays of NumPy 2" in done.stdout + done.stderr
