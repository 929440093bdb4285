"""The sequence model of a repository, against the interface of Triton's Python back end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils
from fake_server import OUTPUTS, RefusedError, Server, outputs_of

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import InputError
from rvos_deploy.parity.golden_vectors import read_golden_clip
from rvos_deploy.rle import decode
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import StreamSettings
from rvos_deploy.triton import stream_model
from rvos_deploy.triton.repository import RepositoryOptions, export_repository

SMALL = {"size": [64, 96], "fallback": "top1"}


@pytest.fixture(params=["onnx", "in-process"])
def server(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Iterator[Server]:
    backend = "onnxruntime" if request.param == "in-process" else "auto"
    options = RepositoryOptions(graphs=request.param, backend=backend, streams=2)
    export_repository(source, tmp_path / "models", options)
    one = Server(tmp_path / "models").load()
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
            assert mask[top : top + height, left : left + width].sum() == mask.sum()
    assert clip.masks.any()


def test_graphs_by_requests_give_the_runtimes_numbers_bit_by_bit(
    source: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(source)
    clip = read_golden_clip(bundle)
    export_repository(source, tmp_path / "models", RepositoryOptions())
    server = Server(tmp_path / "models").load()
    backend = OnnxRuntimeBackend("cpu", 1)
    settings = StreamSettings(**{**clip.settings, "lookahead": 1})
    with backend.open(bundle) as session, Segmenter(bundle, backend) as segmenter:
        # The server's models are the runtime's own graphs, so only the way there differs.
        for name, graph in session.graphs.items():
            pb_utils.models[f"rvos_{name}"] = graph.run
        with segmenter.stream(clip.texts, settings) as stream:
            expected = [result for frame in clip.frames for result in stream.push(frame)]
            expected += list(stream.flush())
        found: dict[str, list[np.ndarray]] = {name: [] for name in ("INDEX", "SCORE", "MASK")}
        last = len(clip.frames) - 1
        for number, frame in enumerate(clip.frames):
            answer = server.ask(
                3,
                frame,
                None if number else clip.texts,
                start=not number,
                end=number == last,
                settings=None if number else {**clip.settings, "lookahead": 1},
            )
            for name, arrays in found.items():
                arrays += list(answer[name])
        server.model.finalize()
    assert found["INDEX"] == [result.index for result in expected for _ in clip.texts]
    assert (np.array(found["SCORE"]) == np.concatenate([r.scores for r in expected])).all()
    assert (np.array(found["MASK"]) == np.concatenate([r.masks for r in expected])).all()
    assert np.array(found["MASK"]).any()


def test_expressions_come_and_go(tiny_server: Server, frames: np.ndarray) -> None:
    first = tiny_server.ask(1, frames[0], ["a", "b"], start=True, settings=SMALL)
    assert list(first["EXPRESSION"]) == [0, 1]
    second = tiny_server.ask(1, frames[1], ["b", "c", "b"])
    assert list(second["EXPRESSION"]) == [1, 2]
    third = tiny_server.ask(1, frames[2])
    assert [text.decode() for text in third["TEXT"]] == ["b", "c"]
    nothing = tiny_server.ask(1, frames[3], [])
    assert list(nothing["DECIDED"]) == [3]
    assert nothing["MASK"].shape[0] == len(nothing["SCORE"]) == len(nothing["RLE"]) == 0


def test_waiting_frames_come_at_the_end(tiny_server: Server, frames: np.ndarray) -> None:
    settings = {**SMALL, "lookahead": 2}
    decided = []
    for number, frame in enumerate(frames):
        first = not number
        texts, given = (["a"], settings) if first else (None, None)
        found = tiny_server.ask(1, frame, texts, start=first, settings=given)
        decided.append(list(found["DECIDED"]))
    assert decided == [[], [], [0], [1]]
    last = tiny_server.ask(1, end=True, outputs=["DECIDED", "MASK", "RLE"])
    assert set(last) == {"DECIDED", "MASK", "RLE"}
    assert list(last["DECIDED"]) == [2, 3]
    assert last["MASK"].shape == (2, 64, 96)
    with pytest.raises(RefusedError, match="sequence 1 is not open"):
        tiny_server.ask(1, frames[0])


def test_frames_of_several_sizes_come_as_run_lengths(
    tiny_server: Server, frames: np.ndarray
) -> None:
    settings = {**SMALL, "lookahead": 2}
    for sequence in (1, 2):
        tiny_server.ask(sequence, frames[0], ["a"], start=True, settings=settings)
        tiny_server.ask(sequence, np.ascontiguousarray(frames[1][:32]))
    with pytest.raises(RefusedError, match="frames of several sizes"):
        tiny_server.ask(1, end=True)
    lengths = tiny_server.ask(2, end=True, outputs=["RLE"])["RLE"]
    assert [decode(json.loads(one)).shape for one in lengths] == [(64, 96), (32, 96)]


def test_sequences_do_not_mix(tiny_server: Server, frames: np.ndarray) -> None:
    def alone(order: list[int]) -> list[np.ndarray]:
        found = []
        for number, index in enumerate(order):
            first = not number
            texts, given = (["a", "b"], SMALL) if first else (None, None)
            answer = tiny_server.ask(9, frames[index], texts, start=first, settings=given)
            found.append(answer["MASK"])
        tiny_server.ask(9, end=True)
        return found

    orders = ([0, 1, 2], [3, 2, 1])
    expected = [alone(order) for order in orders]
    for number in range(3):
        first = not number
        texts, given = (["a", "b"], SMALL) if first else (None, None)
        # Triton may give requests of several sequences at once.
        requests = [
            tiny_server.request(sequence, frames[order[number]], texts, start=first, settings=given)
            for sequence, order in enumerate(orders)
        ]
        answers = map(outputs_of, tiny_server.model.execute(requests))
        for sequence, answer in enumerate(answers):
            assert (answer["MASK"] == expected[sequence][number]).all()
    with pytest.raises(RefusedError, match="2 streams are open"):
        tiny_server.ask(5, frames[0], ["a"], start=True)
    tiny_server.ask(0, end=True)
    tiny_server.ask(5, frames[0], ["a"], start=True, settings=SMALL)


def test_a_sequence_that_triton_forgot_makes_place(tiny_server: Server, frames: np.ndarray) -> None:
    for sequence in (1, 2):
        tiny_server.ask(sequence, frames[0], ["a"], start=True, settings=SMALL)
    tiny_server.model._sequences[1].used -= 40.0  # of 60
    tiny_server.ask(3, frames[0], ["a"], start=True, settings=SMALL)
    assert list(tiny_server.model._sequences) == [2, 3]


def test_a_new_start_replaces_a_sequence(tiny_server: Server, frames: np.ndarray) -> None:
    tiny_server.ask(1, frames[0], ["a"], start=True, settings=SMALL)
    tiny_server.ask(1, frames[1])
    again = tiny_server.ask(1, frames[2], ["b"], start=True, settings=SMALL)
    assert (list(again["DECIDED"]), list(again["EXPRESSION"])) == ([0], [0])
    assert len(tiny_server.model._sequences) == 1


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"colour": 1}, "colour"),
        ("{", "SETTINGS is wrong"),
        ("[" * 100_000, "SETTINGS is wrong"),
        ({"threshold": 2}, "threshold must lie in 0..1"),
        ({"size": [3, 3]}, "multiple"),
        ({"lookahead": 1000}, "lookahead must be at most 256"),
        ({"memory": 10**6}, "frames that can be remembered"),
        ({"mode": "offline"}, "mode"),
    ],
)
def test_wrong_settings_start_nothing(
    tiny_server: Server, frames: np.ndarray, settings: object, found: str
) -> None:
    tiny_server.ask(1, frames[0], ["a"], start=True, settings=SMALL)
    with pytest.raises(RefusedError, match=found):
        tiny_server.ask(2, frames[0], ["a"], start=True, settings=settings)
    with pytest.raises(RefusedError, match="sequence 2 is not open"):
        tiny_server.ask(2, frames[1])
    assert list(tiny_server.ask(1, frames[1])["DECIDED"]) == [1]


def test_a_wrong_request_leaves_its_sequence_as_it_was(
    tiny_server: Server, frames: np.ndarray
) -> None:
    tiny_server.ask(1, frames[0], ["a", "b"], start=True, settings=SMALL)
    wrong: list[tuple[dict, str]] = [
        ({"frame": frames[1].astype(np.float32)}, "uint8"),
        ({"frame": frames[1][..., 0].copy()}, "uint8"),
        ({"frame": frames[1][:0]}, "uint8"),
        ({"frame": frames[1], "texts": ["c", " "]}, "empty"),
        ({"frame": frames[1], "texts": [b"\xff"]}, "EXPRESSIONS holds bytes that are not UTF-8"),
        ({"frame": frames[1], "texts": list("abcd")}, "at most 3 are followed"),
        ({"frame": frames[1], "texts": ["a" * 501]}, "501 letters"),
        ({"frame": frames[1], "settings": SMALL}, "first request"),
    ]
    for request, found in wrong:
        with pytest.raises(RefusedError, match=found):
            tiny_server.ask(1, **request)
    after = tiny_server.ask(1, frames[1])
    assert list(after["DECIDED"]) == [1]
    assert [text.decode() for text in after["TEXT"]] == ["a", "b"]


def test_a_failed_graph_ends_its_own_sequence_only(tiny_server: Server, frames: np.ndarray) -> None:
    for sequence in (1, 2):
        tiny_server.ask(sequence, frames[0], ["a"], start=True, settings=SMALL)
    backbone = pb_utils.models.pop("rvos_backbone")
    with pytest.raises(RefusedError, match=r"rvos_backbone failed: unknown model.*is over"):
        tiny_server.ask(1, frames[1])
    pb_utils.models["rvos_backbone"] = backbone
    with pytest.raises(RefusedError, match="sequence 1 is not open"):
        tiny_server.ask(1, frames[1])
    assert list(tiny_server.ask(2, frames[1])["DECIDED"]) == [1]
    # Of two requests at once, one fails.
    pb_utils.models["rvos_mask_head"] = lambda inputs: {"mask_logits": np.zeros(3, np.float32)}
    answers = tiny_server.model.execute(
        [tiny_server.request(2, frames[2]), tiny_server.request(3, start=True, settings=SMALL)]
    )
    assert [answer.has_error() for answer in answers] == [True, False]


def test_a_fault_of_the_code_is_one_error_and_a_line_of_the_log(
    tiny_server: Server, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sequence in (1, 2):
        tiny_server.ask(sequence, frames[0], ["a"], start=True, settings=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(stream_model, "make_outputs", lambda *_: 1 // 0)
        with pytest.raises(RefusedError, match="unexpected ZeroDivisionError"):
            tiny_server.ask(1, frames[1])
    assert "ZeroDivisionError" in pb_utils.Logger.lines[-1]
    assert list(tiny_server.ask(2, frames[1])["DECIDED"]) == [1]
    with pytest.raises(RefusedError, match="sequence 1 is not open"):
        tiny_server.ask(1, frames[1])


def test_idle_sequences_are_freed_without_another_request(
    tmp_path: Path, frames: np.ndarray
) -> None:
    export_repository("tiny", tmp_path / "models", RepositoryOptions(idle_seconds=0.4))
    server = Server(tmp_path / "models").load()
    server.ask(1, frames[0], ["a"], start=True, settings=SMALL)
    stream = server.model._sequences[1].stream
    for _ in range(600):
        if not server.model._sequences:
            break
        time.sleep(0.05)
    assert not server.model._sequences
    with pytest.raises(InputError, match="this stream is closed"):
        stream.push(frames[1])
    assert pb_utils.Logger.lines[-1] == "freed sequence 1, which was idle"
    with pytest.raises(RefusedError, match=r"idle for 0\.4 s"):
        server.ask(1, frames[1])
    server.model.finalize()
    assert "idle sequences" not in {thread.name for thread in threading.enumerate()}


def test_the_end_frees(tiny_server: Server, frames: np.ndarray) -> None:
    tiny_server.ask(1, frames[0], ["a"], start=True, end=True, settings=SMALL)
    assert not tiny_server.model._sequences
    tiny_server.ask(1, frames[0], ["a"], start=True, settings=SMALL)
    with pytest.raises(RefusedError):
        tiny_server.ask(1, frames[0].astype(np.float32), end=True)
    assert not tiny_server.model._sequences


def test_outputs_that_nobody_asked_for_cost_nothing(
    tiny_server: Server, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rvos_deploy.runtime.frame_masks.encode", lambda mask: 1 // 0)
    found = tiny_server.ask(
        1, frames[0], ["a"], start=True, settings=SMALL, outputs=["SCORE", "BOX"]
    )
    assert set(found) == {"SCORE", "BOX"}
    with pytest.raises(RefusedError):
        tiny_server.ask(1, frames[1], outputs=OUTPUTS)


def test_a_repository_of_another_version_is_refused(tmp_path: Path) -> None:
    export_repository("tiny", tmp_path / "models", RepositoryOptions())
    server = Server(tmp_path / "models")
    server.parameters["schema"] = {"string_value": "rvos-deploy/triton/9"}
    with pytest.raises(InputError, match="run export-triton of the same version"):
        server.load()


def test_a_back_end_that_misreads_arrays_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stream_model.require_arrays()
    # As Triton 24.10 does it: the first number, everywhere.
    monkeypatch.setattr(
        pb_utils.Tensor,
        "from_dlpack",
        staticmethod(lambda name, array: pb_utils.Tensor(name, np.full_like(array, array[0]))),
    )
    monkeypatch.setattr(stream_model.np, "__version__", "2.4.0")
    with pytest.raises(InputError, match=r"pip install 'numpy<2' for it, or use Triton 24\.11"):
        stream_model.require_arrays()
    monkeypatch.setattr(stream_model.np, "__version__", "1.26.4")
    stream_model.require_arrays()
