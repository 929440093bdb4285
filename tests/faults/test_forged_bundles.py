"""Bundles made to smuggle something in: what is parsed is what was listed and hashed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from damage import NO_DIGEST, Attempt, Resign, damaged, ends_well, linked, signed

from rvos_deploy.bundle.folder import MANIFEST, PARITY, TOKENIZER, Bundle, open_bundle
from rvos_deploy.errors import BundleError
from rvos_deploy.graph_io.probe import probe_clip, probe_inputs
from rvos_deploy.parity.verification import CLIP_LOGITS, read_reference
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.segmenter import Segmenter, load


@pytest.fixture
def external(tiny_bundle: Path, tmp_path: Path, resign: Resign) -> Path:
    """A bundle whose mask head has its weights in a file of their own."""
    folder = linked(tiny_bundle, tmp_path / "external", "mask_head.onnx", MANIFEST)
    onnx.save_model(
        onnx.load(folder / "mask_head.onnx"),
        folder / "mask_head.onnx",
        save_as_external_data=True,
        location="mask_head.onnx.data",
        size_threshold=1024,
    )
    resign(folder, "mask_head.onnx.data")
    return folder


def run_head(folder: Path, backend: str = "onnxruntime") -> Any:
    """The mask head's output, from a bundle that is opened for it."""
    bundle = open_bundle(folder, check_files=False)
    spec = bundle.graphs["mask_head"]
    inputs = probe_inputs(spec, {"E": 2, "H": 32, "W": 64}, 0)
    with make_backend(backend, threads=1).open_files(
        [(spec, bundle.graph_file("mask_head"))]
    ) as session:
        return session.graphs["mask_head"].run(inputs)["mask_logits"]


@pytest.mark.parametrize("backend", ["onnxruntime", "bf16-reference"])
def test_external_data_that_is_listed_is_used(
    tiny_bundle: Path, external: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert (run_head(tiny_bundle, backend) == run_head(external, backend)).all()


def test_tensorrt_takes_external_data_from_memory(external: Path, tiny_bundle: Path) -> None:
    """Its parser is given the bytes; by a path it would open the file again."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    from rvos_deploy.engines.messages import Messages, make_logger
    from rvos_deploy.engines.network import create_network, parse
    from rvos_deploy.engines.onnx_source import read_onnx

    layers = []
    for folder in (tiny_bundle, external):
        source = read_onnx(open_bundle(folder).graph_file("mask_head"))
        assert bool(source.external) is (folder == external)
        if folder == external:
            (external / "mask_head.onnx.data").write_bytes(b"swapped")
        messages = Messages()
        logger = make_logger(trt, messages)
        network = create_network(trt, trt.Builder(logger), plugin=False)
        parser = parse(trt, network, logger, messages, source)
        layers.append(network.num_layers)
        del parser
    assert layers[0] == layers[1] > 10


def test_external_data_that_is_not_listed_is_refused(
    external: Path, resign: Resign, attempt: Attempt
) -> None:
    manifest = json.loads((external / MANIFEST).read_text(encoding="utf-8"))
    del manifest["files"]["mask_head.onnx.data"]
    resign(external, manifest=manifest)
    with attempt("forged external data"):
        assert "does not list mask_head.onnx.data" in ends_well(lambda: run_head(external))


@pytest.mark.parametrize(
    "location",
    [
        *("/etc/passwd", "../mask_head.onnx.data", "./mask_head.onnx.data", "tokenizer.json"),
        *("", "*/_ORT_MEM_ADDR_/*", "mask_head.onnx.data\0", "mask_head.onnx", "\x1b[2J"),
    ],
)
def test_external_data_from_elsewhere_is_refused(
    external: Path, resign: Resign, attempt: Attempt, location: str
) -> None:
    model = onnx.load(external / "mask_head.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (external / "mask_head.onnx").write_bytes(model.SerializeToString())
    resign(external, "mask_head.onnx.data")
    with attempt("forged external data"):
        assert "reads weights from" in ends_well(lambda: run_head(external))


def test_external_data_of_a_node_is_refused(
    external: Path, resign: Resign, attempt: Attempt
) -> None:
    """A constant, or a graph inside a node: no exporter of ours writes such."""
    model = onnx.load(external / "mask_head.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    node = onnx.helper.make_node("Constant", [], ["forged"], value=tensor)
    model.graph.node.insert(0, node)
    (external / "mask_head.onnx").write_bytes(model.SerializeToString())
    resign(external, "mask_head.onnx.data")
    with attempt("forged external data"):
        assert "external data in AttributeProto" in ends_well(lambda: run_head(external))


BEYOND = [
    *({"offset": value} for value in ("999999999", "-5", "x", "18446744073709551615")),
    *({"length": value} for value in ("99999999", "1", "-1")),
]


@pytest.mark.parametrize("change", BEYOND, ids=str)
@pytest.mark.parametrize("backend", ["onnxruntime", "bf16-reference"])
def test_external_data_beyond_its_file_is_refused(
    external: Path, resign: Resign, attempt: Attempt, change: dict[str, str], backend: str
) -> None:
    model = onnx.load(external / "mask_head.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = change.get(entry.key, entry.value)
    (external / "mask_head.onnx").write_bytes(model.SerializeToString())
    resign(external, "mask_head.onnx.data")
    with attempt("forged external data"):
        assert "mask_head" in ends_well(lambda: run_head(external, backend))


NAMES = ["text_encoder.onnx", "mask_head.onnx", "mask_head.onnx.data", TOKENIZER, PARITY]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_hashed_is_what_is_parsed(
    external: Path, attempt: Attempt, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is swapped right after it was hashed: what it held before is used."""
    from rvos_deploy.bundle import folder as module

    copy = external / f"{name}.copy"
    shutil.copy(external / name, copy)
    (external / name).unlink()
    copy.rename(external / name)
    real, swapped = module.hashlib.sha256, []

    class Hash:
        """Hashes, then swaps the file on the disk."""

        def __init__(self, content: bytes) -> None:
            self._hash = real(content)
            if content == original:
                (external / name).write_bytes(b"swapped" * (1 + len(content) // 7))
                swapped.append(name)

        def hexdigest(self) -> str:
            return self._hash.hexdigest()

    original = (external / name).read_bytes()
    bundle = open_bundle(external)
    monkeypatch.setattr(module, "hashlib", type("hashlib", (), {"sha256": Hash}))
    with attempt("files swapped after hashing"):
        if name == PARITY:
            assert CLIP_LOGITS in read_reference(bundle)
        else:
            segment_opened(bundle)
        assert swapped == [name]
    with attempt("files swapped after hashing"):
        assert name in ends_well(lambda: open_bundle(external))


def segment_opened(bundle: Bundle) -> None:
    with (
        Segmenter(bundle, make_backend(threads=1)) as segmenter,
        segmenter.stream(["the disc"]) as stream,
    ):
        assert stream.push(probe_clip(1)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_swapped_before_it_is_read_is_refused(
    external: Path, attempt: Attempt, name: str
) -> None:
    bundle = open_bundle(external)
    content = bytearray((external / name).read_bytes())
    content[len(content) // 2] ^= 1
    (external / name).unlink()
    (external / name).write_bytes(content)
    with attempt("files swapped after hashing"), pytest.raises(BundleError, match="sha256 differs"):
        bundle.read(name)


def test_every_file_is_hashed_once_in_a_load(
    external: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvos_deploy.bundle import folder as module

    hashed: list[int] = []
    real_bytes, real_file = module.hashlib.sha256, module.sha256_file

    def sha256(content: bytes) -> Any:
        hashed.append(len(content))
        return real_bytes(content)

    def sha256_file(path: Path) -> str:
        hashed.append(path.stat().st_size)
        return real_file(path)

    monkeypatch.setattr(module, "hashlib", type("hashlib", (), {"sha256": staticmethod(sha256)}))
    monkeypatch.setattr(module, "sha256_file", sha256_file)
    load(external, threads=1).close()
    sizes = [(external / name).stat().st_size for name in open_bundle_files(external)]
    assert sorted(hashed) == sorted([*sizes, (external / MANIFEST).stat().st_size])


def open_bundle_files(folder: Path) -> list[str]:
    return list(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video to evaluate on: ``evaluate`` reads it before the bundle."""
    from rvos_deploy.datasets.moving_sprites import SplitSpec, WorldConfig, write_mevis

    config = WorldConfig(height=64, width=96, frames=8, emoji=False)
    root = tmp_path_factory.mktemp("sprites")
    write_mevis(root / "valid", SplitSpec(seed=2, split="valid", videos=1, config=config))
    return root


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "run", "evaluate", "benchmark", "build-engine"]
)
@pytest.mark.parametrize("damage", ["brackets", "files", "parity"])
def test_every_command_says_one_line(
    rvos: Callable[..., Any],
    external: Path,
    tmp_path: Path,
    video: Path,
    data: Path,
    attempt: Attempt,
    command: str,
    damage: str,
) -> None:
    content = json.loads((external / MANIFEST).read_text(encoding="utf-8"))
    content["manifest_sha256"] = NO_DIGEST.decode()
    if damage == "brackets":
        forged = damaged(content, ("versions",), "replace", b"[" * 200_000)
    elif damage == "files":
        forged = damaged(content, ("files",), "replace", b"{}")
    else:
        forged = damaged(content, ("parity",), "replace", b"{}")
    (external / MANIFEST).write_bytes(signed(forged))
    arguments: tuple[object, ...] = {
        "run": (video, "-b", external, "-o", tmp_path / "out", "--", "the dog"),
        "benchmark": ("-b", external),
        "evaluate": (external, "--data", data, "--protocol", "mevis"),
        "build-engine": (external, "--target", "tensorrt-rtx"),
    }.get(command, (external,))
    with attempt("damaged bundles, every command"):
        result = rvos(command, *arguments)
        assert result.code == 2
        assert str(external / MANIFEST) in result.error
        assert not (tmp_path / "out").exists()
