"""A bundle of fixed sizes gives what one of dynamic sizes gives: rows, tokens, frames, padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.errors import InputError
from rvos_deploy.graph_io.frame_geometry import letterbox, resize_frame
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec, TensorSpec, fixed_box
from rvos_deploy.runtime.backends.base import Graph, Session
from rvos_deploy.runtime.backends.host_ops import HostOps
from rvos_deploy.runtime.fixed_shapes import run_rows
from rvos_deploy.runtime.segmenter import Segmenter, load
from rvos_deploy.runtime.stream import FrameMasks, Stream
from rvos_deploy.stream_settings import StreamSettings

TEXTS = [
    "the square moving to the right",
    "the disc",
    "everything that is red or blue",
    "a dog",
    "the small thing at the left",
]
BOX = (64, 96)


class Doubling(Graph):
    """Twice the rows, plus what all rows share; counts its runs."""

    def __init__(self, rows: AxisSpec) -> None:
        spec = GraphSpec(
            "doubling",
            (TensorSpec("x", "float32", ("E", 2)), TensorSpec("shared", "float32", (1, 2))),
            (TensorSpec("y", "float32", ("E", 2)), TensorSpec("sum", "float32", (1, 2))),
            (rows,),
            1e-4,
        )
        super().__init__(spec)
        self.seen: list[NDArray[Any]] = []

    def _close(self) -> None:
        pass

    def _run(self, inputs: Mapping[str, Any], axes: Mapping[str, int]) -> dict[str, Any]:
        x, shared = (np.array(inputs[name]) for name in ("x", "shared"))
        self.seen.append(x)
        outputs = {"y": 2 * x + shared, "sum": shared}
        on_device = isinstance(inputs["x"], OnDevice)
        return {n: OnDevice(array) if on_device else array for n, array in outputs.items()}


class OnDevice:
    """An array that is not NumPy's, as a GPU's is: only the operations of its session read it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array


class OpsOnDevice(HostOps):
    """What they give stays on the device."""

    def gather(self, value: Any, index: NDArray[np.integer]) -> Any:
        return OnDevice(np.asarray(super().gather(value, index)))

    def concatenate(self, values: Any) -> Any:
        return OnDevice(np.asarray(super().concatenate(values)))


@pytest.mark.parametrize("ops", [HostOps(), OpsOnDevice()])
@pytest.mark.parametrize("rows", range(1, 8))
def test_any_number_of_rows_runs_in_chunks_of_the_fixed_number(ops: HostOps, rows: int) -> None:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    shared = np.array([[100, 200]], np.float32)
    graph = Doubling(AxisSpec("E", 3, 3))
    there = isinstance(ops, OpsOnDevice)
    given = {"x": OnDevice(x) if there else x, "shared": shared}
    outputs = run_rows(Session({"doubling": graph}, ops), "doubling", given)
    assert isinstance(outputs["y"], OnDevice) == there
    np.testing.assert_array_equal(np.asarray(outputs["y"]), 2 * x + shared)
    np.testing.assert_array_equal(np.asarray(outputs["sum"]), shared)
    assert len(graph.seen) == -(-rows // 3)
    assert all(chunk.shape == (3, 2) for chunk in graph.seen)
    padding = np.concatenate(graph.seen)[rows:]
    np.testing.assert_array_equal(padding, np.repeat(x[-1:], len(padding), axis=0))


def test_a_dynamic_graph_runs_once() -> None:
    x, graph = np.ones((5, 2), np.float32), Doubling(AxisSpec("E", 1, 8))
    session = Session({"doubling": graph}, HostOps())
    run_rows(session, "doubling", {"x": x, "shared": x[:1]})
    assert [chunk.shape for chunk in graph.seen] == [(5, 2)]
    with pytest.raises(InputError, match="axis E cannot be 9: needs 1 to 8"):
        run_rows(session, "doubling", {"x": np.ones((9, 2), np.float32), "shared": x[:1]})


def test_what_is_fixed_is_read_from_the_contracts(static_bundle: Path, tiny_bundle: Path) -> None:
    with load(static_bundle) as fixed, load(tiny_bundle) as dynamic:
        assert fixed_box(fixed.bundle.graphs) == BOX
        assert fixed_box(dynamic.bundle.graphs) is None
        video = fixed.bundle.graphs["video_decoder"]
        assert [video.minimum_size(name) for name in "ELM"] == [2, 16, 8]
        assert video.minimum_size("H") == 1


@pytest.mark.parametrize(
    ("display", "content"),
    [((90, 157), (55, 96)), ((157, 90), (64, 37)), ((64, 96), (64, 96)), ((1, 1000), (1, 96))],
)
def test_a_fixed_box_is_neither_turned_nor_cut(
    display: tuple[int, int], content: tuple[int, int]
) -> None:
    geometry = letterbox(display, BOX, fixed=True)
    assert (geometry.display, geometry.content, geometry.padded) == (display, content, BOX)
    image = np.full((*display, 3), 255, np.uint8)
    frame = resize_frame(image, geometry)
    assert frame.shape == (1, *BOX, 3)
    assert (frame[0, : content[0], : content[1]] == 255).all()
    assert (frame[0, content[0] :] != 255).all()
    assert (frame[0, :, content[1] :] != 255).all()


@pytest.fixture(scope="module")
def fixed(static_bundle: Path) -> Iterator[Segmenter]:
    with load(static_bundle) as loaded:
        yield loaded


Logits = list[NDArray[np.float32]]


@pytest.fixture
def both(
    fixed: Segmenter, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Run a use of a stream on both bundles: equal masks, logits within 1e-4, scores within 1e-5.

    Masks of random weights cover much: they must be neither full nor empty to tell anything.
    """
    shown: Logits = []
    upsample = HostOps.upsample_masks

    def record(self: HostOps, logits: Any, geometry: Any) -> Any:
        shown.append(np.array(logits))
        return upsample(self, logits, geometry)

    monkeypatch.setattr(HostOps, "upsample_masks", record)

    def compare(
        use: Callable[[Stream], list[FrameMasks]], texts: list[str], **changes: Any
    ) -> None:
        found = []
        for loaded in (fixed, segmenter):
            shown.clear()
            settings = StreamSettings(size=BOX, fallback="top1", **changes)
            with loaded.stream(texts, settings) as stream:
                results = use(stream)
            found.append((results, list(shown)))
        (ours, our_logits), (theirs, their_logits) = found
        assert len(ours) == len(theirs) > 0
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.index, mine.expressions) == (other.index, other.expressions)
            np.testing.assert_array_equal(mine.masks, other.masks)
            np.testing.assert_allclose(mine.scores, other.scores, atol=1e-5)
        for mine, other in zip(our_logits, their_logits, strict=True):
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine, other, atol=1e-4)
        assert 0.001 < np.mean([result.masks.mean() for result in ours]) < 0.999

    return compare


def push_all(clip: NDArray[np.uint8]) -> Callable[[Stream], list[FrameMasks]]:
    def use(stream: Stream) -> list[FrameMasks]:
        pushed = [result for frame in clip for result in stream.push(frame)]
        return pushed + list(stream.flush())

    return use


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_as_many_and_more_expressions_offline(both, clip, count: int) -> None:  # type: ignore[no-untyped-def]
    both(push_all(clip), TEXTS[:count], mode="offline")


@pytest.mark.parametrize(
    "settings", [{"memory": 8}, {"memory": 3, "anchors": 2}, {"memory": 1, "lookahead": 2}], ids=str
)
def test_online_with_a_memory_that_is_padded(both, clip, settings: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
    both(push_all(clip), TEXTS[:3], **settings)


def test_expressions_that_come_and_go(both, clip) -> None:  # type: ignore[no-untyped-def]
    def use(stream: Stream) -> list[FrameMasks]:
        results = [r for frame in clip[:2] for r in stream.push(frame)]
        for text in TEXTS[1:4]:
            stream.add_expression(text)
        results += [r for frame in clip[2:4] for r in stream.push(frame)]
        stream.remove_expression(0)
        stream.remove_expression(2)
        return results + [r for frame in clip[4:] for r in stream.push(frame)]

    both(use, TEXTS[:1], memory=8)


def test_a_portrait_video_is_letterboxed(fixed: Segmenter, segmenter: Segmenter, clip) -> None:  # type: ignore[no-untyped-def]
    """As the dynamic bundle sees frames that were letterboxed before."""
    portrait = np.ascontiguousarray(clip.transpose(0, 2, 1, 3))
    geometry = letterbox(portrait.shape[1:3], BOX, fixed=True)
    assert geometry.content == (64, 37)
    boxed = np.concatenate([resize_frame(frame, geometry) for frame in portrait])
    settings = StreamSettings(mode="offline", fallback="top1", size=BOX)
    found = []
    for loaded, frames in ((fixed, portrait), (segmenter, boxed)):
        with loaded.stream(TEXTS[:2], settings) as stream:
            found.append(push_all(frames)(stream))
    for tall, wide in zip(*found, strict=True):
        assert tall.masks.shape == (2, 157, 90)
        assert wide.masks.shape == (2, *BOX)
        # The content's part of the wide mask, at the display's size, is the tall one.
        rows = np.arange(157) * 64 // 157
        columns = np.arange(90) * 37 // 90
        nearest = wide.masks[:, rows][:, :, columns]
        assert (nearest == tall.masks).mean() > 0.97
        np.testing.assert_allclose(tall.scores, wide.scores, atol=1e-5)


def test_a_sentence_is_padded_and_its_padding_cut(fixed: Segmenter, segmenter: Segmenter) -> None:
    for text in TEXTS:
        ours, theirs = fixed.encode_text(text), segmenter.encode_text(text)
        assert ours.tokens.shape == theirs.tokens.shape
        np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=1e-4)
        np.testing.assert_allclose(ours.sentence, theirs.sentence, atol=1e-4)


def test_a_sentence_longer_than_the_fixed_length_is_cut_with_a_warning(
    fixed: Segmenter, segmenter: Segmenter
) -> None:
    kept = "the small red star that moves to the left behind the big blue disc"
    with pytest.warns(UserWarning, match=r"has 18 tokens, the text encoder reads 16: the end of"):
        ours = fixed.encode_text(f"{kept} and stops")
    theirs = segmenter.encode_text(kept)
    np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": (96, 64)},
            "size 96x64 is not the one that this bundle is fixed to, 64x96; leave --size out, or "
            "export another bundle",
        ),
        ({}, "memory 64 and anchors 0 are more than the 8 frames"),
        ({"memory": 7, "anchors": 2}, "memory 7 and anchors 2 are more than the 8 frames"),
    ],
)
def test_other_sizes_are_refused_in_one_line(
    fixed: Segmenter, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        fixed.stream(TEXTS[:1], StreamSettings(**settings))
    assert str(error.value).startswith(message)


def test_a_clip_longer_than_the_fixed_memory_says_what_to_do(fixed: Segmenter, clip) -> None:  # type: ignore[no-untyped-def]
    frames = [*clip, *clip][:9]
    with (
        fixed.stream(TEXTS[:1], StreamSettings(mode="offline")) as stream,
        pytest.raises(InputError, match=r"frame 9 .* the 8 that .* use --memory 8"),
    ):
        push_all(np.stack(frames))(stream)
    with fixed.stream(TEXTS[:1], StreamSettings(mode="offline", memory=8)) as stream:
        assert len(push_all(np.stack(frames))(stream)) == 9
