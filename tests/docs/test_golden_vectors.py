"""golden.npz holds what docs/graphs.md says, and the runtime's stream gives it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rvos_deploy.bundle.folder import (
    GOLDEN,
    Bundle,
    open_bundle,
    packaged_bundles,
    write_manifest,
)
from rvos_deploy.bundle.parity_file import read_arrays
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.frame_geometry import upsample_all_logits
from rvos_deploy.graph_io.probe import PROBE_BOX
from rvos_deploy.networks.clip_probe import clip_probe
from rvos_deploy.networks.pan2024.slots import OnlineSoftmax, SlotCues, make_tracker
from rvos_deploy.parity.golden_vectors import Golden, golden_vectors
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from rvos_deploy.runtime.segmenter import load
from rvos_deploy.stream_settings import StreamSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "graphs.md"
ROUNDING = 1e-4
"""Of two processors, in logits relative to their largest."""


def stored(bundle: Bundle) -> Golden:
    return read_arrays(bundle.read(GOLDEN), bundle.path / GOLDEN)


@pytest.fixture(scope="module", params=["pan2024", "online_refer"])
def golden_bundle(request: pytest.FixtureRequest) -> Bundle:
    """A bundle of each family that holds golden vectors."""
    if request.param == "pan2024":
        return open_bundle(packaged_bundles()["tiny"])
    path: Path = request.getfixturevalue("online_refer_bundle")
    return open_bundle(path)


def sentences(golden: Golden) -> list[str]:
    return [golden[f"sentence_{row}"].tobytes().decode() for row in range(2)]


def stream_masks(bundle: Bundle, golden: Golden) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Masks [T,E,h,w] and choices [T,E,K] of a stream that does what the golden one did."""
    settings = StreamSettings(
        memory=int(golden["window"]),
        anchors=int(golden["anchors"]),
        fallback="top1",
        size=clip_probe(bundle.network, bundle.graphs).box,
    )
    with (
        load(bundle.path, backend="onnxruntime") as segmenter,
        segmenter.stream(sentences(golden), settings) as stream,
    ):
        choices = stream.record_choices()
        masks = [result.masks for frame in golden["frames"] for result in stream.push(frame)]
    return np.stack(masks), choices.orders().swapaxes(0, 1)


def assert_masks(
    found: NDArray[np.bool_], golden: Golden, bundle: Bundle, needed: NDArray[np.bool_]
) -> None:
    """Masks are equal, except where rounding on another processor decides."""
    geometry = clip_probe(bundle.network, bundle.graphs).geometry
    logits = np.stack([upsample_all_logits(maps, geometry) for maps in golden["mask_logits"]])
    np.testing.assert_array_equal(logits > 0, needed)
    decided = np.abs(logits) > ROUNDING * np.abs(logits).max()
    assert decided.mean() > 0.999
    np.testing.assert_array_equal(found & decided, needed & decided)


def test_the_stream_gives_these_masks(golden_bundle: Bundle) -> None:
    golden = stored(golden_bundle)
    masks, choices = stream_masks(golden_bundle, golden)
    assert masks.shape[:2] == (5, 2)
    assert masks.any(axis=(2, 3)).all()
    np.testing.assert_array_equal(choices, golden["choices"])
    assert_masks(masks, golden, golden_bundle, golden["masks"])


def test_this_machine_gives_the_same_vectors_again(golden_bundle: Bundle) -> None:
    golden = stored(golden_bundle)
    again = golden_vectors(golden_bundle, OnnxRuntimeBackend())
    assert again.keys() == golden.keys()
    for name, value in golden.items():
        assert again[name].dtype == value.dtype, name
        if value.dtype.kind != "f" and name != "masks":
            np.testing.assert_array_equal(again[name], value, name)
    assert_masks(again["masks"], again, golden_bundle, stream_masks(golden_bundle, again)[0])


def test_a_program_from_the_document_gives_the_same(
    golden_bundle: Bundle, numpy_runtime: Callable[..., Mapping[str, NDArray[Any]]]
) -> None:
    golden = stored(golden_bundle)
    found = numpy_runtime(
        f"numpy_{golden_bundle.network.family}",
        golden_bundle.path,
        golden["frames"],
        [(text, 0) for text in sentences(golden)],
        memory=int(golden["window"]),
        anchors=int(golden["anchors"]),
        box=PROBE_BOX,
    )  # fmt: skip
    logits = np.stack([found[f"{t}/mask_logits"] for t in range(5)])
    scale = max(1.0, float(np.abs(golden["mask_logits"]).max()))
    np.testing.assert_allclose(logits, golden["mask_logits"], rtol=0, atol=ROUNDING * scale)
    masks = np.stack([found[f"{t}/masks"] for t in range(5)])
    assert_masks(masks, golden, golden_bundle, golden["masks"])


def test_the_document_lists_every_array(golden_bundle: Bundle) -> None:
    text = DOCUMENT.read_text(encoding="utf-8").split("\n## Golden vectors\n")[1]
    table = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    common = {
        name: (dtype.strip(), len(shape.split(",")) if shape.strip() else 0)
        for names, dtype, shape in table
        for name in re.findall(r"`(\w+)`", names)
    }
    golden, network = stored(golden_bundle), golden_bundle.network
    for name, (dtype, rank) in common.items():
        assert (str(golden[name].dtype), golden[name].ndim) == (dtype, rank), name
    assert golden.keys() == common.keys() | {*network.golden_tensors}
    start, end = ("Of `pan2024` also", "without a") if network.family == "pan2024" else (
        "Of `online_refer`: `joined`", "\n\n"
    )  # fmt: skip
    listed = text.split(start)[1].split(end)[0] + "`joined`"
    assert set(re.findall(r"`(\w+)`", listed)) >= {*network.golden_tensors} - {"mask_logits"}
    specs = {t.name: t for s in golden_bundle.graphs.values() for t in (*s.inputs, *s.outputs)}
    for name in network.golden_tensors:
        assert golden[name].dtype == specs[name].dtype
        assert golden[name].shape[:2] == (5, 2)
        assert golden[name].ndim == 1 + len(specs[name].shape)


def test_cues_alone_give_the_choices_and_the_averages() -> None:
    """So slots and averages can be tested without a graph, as the document says."""
    golden = stored(open_bundle(packaged_bundles()["tiny"]))
    for e in range(2):
        tracker, mean = make_tracker("mask_cues"), OnlineSoftmax()
        for t in range(5):
            cues = (golden[f"slot_{name}"][t, e] for name in ("position", "content", "score"))
            order = tracker.advance(SlotCues(*cues))
            np.testing.assert_array_equal(order, golden["choices"][t, e])
            mean.update(golden["slot_values"][t, e][order], golden["slot_logits"][t, e][order])
            np.testing.assert_allclose(mean.mean(), golden["video_queries"][t, e], atol=1e-6)
    assert (golden["choices"][1:] != golden["choices"][0]).any()


def test_they_show_the_memory_full_with_an_anchor() -> None:
    golden = stored(open_bundle(packaged_bundles()["tiny"]))
    ages = [sorted(row[~empty]) for row, empty in zip(
        golden["memory_ages"][:, 0], golden["memory_empty"][:, 0], strict=True
    )]  # fmt: skip
    assert ages == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4]]


def test_they_are_small_and_say_what_made_them(golden_bundle: Bundle) -> None:
    assert golden_bundle.manifest.files[GOLDEN].bytes < 500_000
    made = golden_bundle.manifest.golden
    assert isinstance(made, str)
    assert re.fullmatch(
        r"made by a stream with onnxruntime \S+; an example of the loop between the graphs, not "
        "the reference of the parity checks",
        made,
    )


@pytest.mark.parametrize("kind", ["tiny_bundle_fp16", "static_bundle"])
def test_other_forms_have_them_too(kind: str, request: pytest.FixtureRequest) -> None:
    bundle = open_bundle(request.getfixturevalue(kind))
    golden = golden_vectors(bundle, OnnxRuntimeBackend())
    np.testing.assert_array_equal(stream_masks(bundle, golden)[0], golden["masks"])
    capacity = 8 if kind == "static_bundle" else 4
    assert golden["memory_ages"].shape == (5, 2, capacity)


def test_a_bundle_from_before_them_opens(tmp_path: Path) -> None:
    packaged = open_bundle(packaged_bundles()["tiny"])
    for name in packaged.manifest.files:
        (tmp_path / name).symlink_to(packaged.path / name)
    manifest = packaged.manifest.as_dict()
    kept = {k: v for k, v in manifest.items() if k not in ("schema", "manifest_sha256", "golden")}
    write_manifest(tmp_path, kept, set(kept.pop("files")) - {GOLDEN})
    old = open_bundle(tmp_path, check_files=True)
    assert GOLDEN not in old.manifest.files
    with load(tmp_path) as segmenter, segmenter.stream(["the disc"]) as stream:
        assert len(stream.push(np.zeros((32, 32, 3), np.uint8))) == 1
    # Vectors that were changed are refused, as every other file is.
    write_manifest(tmp_path, kept, packaged.manifest.files)
    (tmp_path / GOLDEN).unlink()
    content = bytearray((packaged.path / GOLDEN).read_bytes())
    content[1000] ^= 1
    (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(BundleError, match=f"{GOLDEN} was changed since the export"):
        open_bundle(tmp_path)
