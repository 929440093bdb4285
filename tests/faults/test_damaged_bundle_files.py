"""Damaged parity files, tokenizers and graphs, hashed afterwards: one line, or they work."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import Attempt, Resign, byte_damage, ends_well, json_damage, linked, many, quick
from hypothesis import given, settings
from hypothesis import strategies as st

from rvos_deploy.bundle.folder import MANIFEST, PARITY, TOKENIZER, open_bundle
from rvos_deploy.bundle.parity_file import read_arrays
from rvos_deploy.errors import BackendError
from rvos_deploy.networks.pan2024.tokenizer import ClipTokenizer
from rvos_deploy.parity.verification import CLIP_LOGITS, CLIP_ORDER
from rvos_deploy.runtime.backends.registry import make_backend


def npz(**arrays: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


def header(shape: str = "(2,)", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def zeros(count: int) -> bytes:
    file = BytesIO()
    np.save(file, np.zeros(count, np.uint8))
    return file.getvalue()


def by_method(method: int) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.npy", zeros(1000))
    return file.getvalue()


PARITY_FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no zip": lambda: b"x" * 100,
    "an empty zip": npz,
    "a header of 4 TB": lambda: npz(a=npy(header("(1099511627776,)"))),
    "a header of 4 TB by two sizes": lambda: npz(a=npy(header("(1048576, 1048576)"))),
    "a negative size": lambda: npz(a=npy(header("(-2,)"), bytes(8))),
    "two negative sizes": lambda: npz(a=npy(header("(-2, -1)"), bytes(8))),
    "a size that is no number": lambda: npz(a=npy(header("('a',)"), bytes(8))),
    "objects": lambda: npz(a=npy(header(descr="'|O'"), bytes(16))),
    "a pickle": lambda: npz(a=b"\x80\x04K\x01."),
    "a record": lambda: npz(a=npy(header(descr="[('x', '<f4')]"), bytes(8))),
    "texts": lambda: npz(a=npy(header(descr="'<U1'"), bytes(8))),
    "an array in an array": lambda: npz(a=npy(header(descr="('<f4', (2,))"), bytes(16))),
    "a header of brackets": lambda: npz(a=npy("(" * 60_000)),
    "a header of code": lambda: npz(a=npy("__import__('os').abort()")),
    "a header that is none": lambda: npz(a=npy("'")),
    "a header that ends early": lambda: npz(a=b"\x93NUMPY\x01\x00\xff\xff{"),
    "an unknown version": lambda: npz(a=npy(header(), bytes(8), b"\x07\x00")),
    "too little": lambda: npz(a=npy(header(), bytes(7))),
    "too much": lambda: npz(a=npy(header(), bytes(9))),
    "a bomb": lambda: npz(**{str(i): zeros(30 << 20) for i in range(9)}),
    "5,000 arrays": lambda: npz(**{str(i): b"" for i in range(5000)}),
    "bzip2": lambda: by_method(zipfile.ZIP_BZIP2),
    "lzma": lambda: by_method(zipfile.ZIP_LZMA),
}


@pytest.mark.parametrize("name", PARITY_FILES)
def test_parity_files_made_by_hand_are_one_line(name: str, attempt: Attempt) -> None:
    with attempt("parity files made by hand"):
        content = PARITY_FILES[name]()
        line = ends_well(lambda: read_arrays(content, Path(PARITY)))
        assert line or name == "an empty zip"


@pytest.mark.parametrize("how", [quick, pytest.param(many, marks=pytest.mark.slow)])
def test_damaged_parity_files(tiny_bundle: Path, attempt: Attempt, how: settings) -> None:
    whole = (tiny_bundle / PARITY).read_bytes()

    @how
    @given(byte_damage(whole))
    def run(content: bytes) -> None:
        with attempt("damaged parity files"):
            ends_well(lambda: read_arrays(content, Path(PARITY)))

    run()


def test_a_parity_file_that_lacks_what_verify_needs(
    tiny_bundle: Path, tmp_path: Path, attempt: Attempt, resign: Resign, rvos: Callable[..., Any]
) -> None:
    folder = linked(tiny_bundle, tmp_path / "bundle", PARITY, MANIFEST)
    with np.load(folder / PARITY) as file:
        whole = {name: file[name] for name in file.files}
    logits, order = whole[CLIP_LOGITS], whole[CLIP_ORDER]
    first = next(name for name in whole if name.startswith("backbone"))
    changes: list[tuple[str, Any]] = [
        (first, None),
        (CLIP_LOGITS, None),
        (CLIP_LOGITS, logits[:, :-1]),
        (CLIP_LOGITS, logits[0, 0, 0, 0]),
        (CLIP_LOGITS, np.full_like(logits, np.nan)),
        (CLIP_ORDER, order.astype(np.float32)),
        (CLIP_ORDER, order[..., :-1]),
        (CLIP_ORDER, np.zeros_like(order)),
        (CLIP_ORDER, order + 1_000_000),
    ]
    for key, value in changes:
        with attempt("parity files made by hand"):
            recorded = {name: array for name, array in whole.items() if name != key}
            if value is not None:
                recorded[key] = value
            np.savez(folder / PARITY, **recorded)
            resign(folder)
            result = rvos("verify", folder)
            assert result.code == 2
            assert f"no usable '{key}'" in result.error


def tokenizer_tree(tiny_bundle: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer without its long lists, and those."""
    tree = json.loads((tiny_bundle / TOKENIZER).read_text(encoding="utf-8"))
    return tree, {key: tree["model"].pop(key) for key in ("vocab", "merges")}


def encode(content: bytes) -> None:
    ClipTokenizer(Path(TOKENIZER), content)("the brown dog, running 2 times!")


@pytest.mark.parametrize("how", [quick, pytest.param(many, marks=pytest.mark.slow)])
def test_damaged_tokenizers(
    tiny_bundle: Path, attempt: Attempt, how: settings, capfd: pytest.CaptureFixture[str]
) -> None:
    tree, _ = tokenizer_tree(tiny_bundle)
    tree["model"] |= {
        "vocab": {"a": 0, "b": 1, "ab": 2, "<start_of_text>": 3, "<end_of_text>": 4},
        "merges": [["a", "b"]],
    }
    for token in tree["added_tokens"]:
        token["id"] = tree["model"]["vocab"][token["content"]]
    encode(json.dumps(tree).encode())

    @how
    @given(st.one_of(json_damage(tree), byte_damage(json.dumps(tree).encode())))
    def run(content: bytes) -> None:
        with attempt("damaged tokenizers"):
            ends_well(lambda: encode(content))

    run()
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unk_token", ""),
        ("continuing_subword_prefix", "H/x"),
        ("dropout", 0.5),
        ("type", "WordPiece"),
    ],
)
def test_a_tokenizer_that_would_fail_when_it_is_used(
    tiny_bundle: Path, attempt: Attempt, key: str, value: object
) -> None:
    """The second ends the library in a panic, which prints a traceback of its own."""
    tree, long = tokenizer_tree(tiny_bundle)
    tree["model"] |= {**long, key: value}
    with attempt("damaged tokenizers"):
        assert f"$.model.{key}" in ends_well(lambda: encode(json.dumps(tree).encode()))


def test_a_tokenizer_that_asks_for_padding_without_end(tiny_bundle: Path) -> None:
    tree, long = tokenizer_tree(tiny_bundle)
    tree["model"] |= long
    tree["padding"] = {
        "strategy": {"Fixed": 1 << 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    padded = ClipTokenizer(Path(TOKENIZER), json.dumps(tree).encode())
    plain_one = ClipTokenizer(tiny_bundle / TOKENIZER)
    assert (padded("the dog") == plain_one("the dog")).all()


_RUN_GRAPHS = """
import sys
from pathlib import Path
from rvos_deploy.errors import RvosError
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.graph_io.probe import probe_inputs
spec = open_bundle(sys.argv[1]).graphs["mask_head"]
inputs = probe_inputs(spec, {"E": 2, "H": 32, "W": 64}, 0)
for file in sys.argv[2:]:
    try:
        files = [(spec, OnnxFile(Path(file)))]
        with make_backend("onnxruntime", threads=1).open_files(files) as session:
            session.graphs["mask_head"].run(inputs)
    except RvosError:
        pass
    print(file, flush=True)
"""


@pytest.mark.parametrize("count", [12, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_damaged_graphs(tiny_bundle: Path, tmp_path: Path, attempt: Attempt, count: int) -> None:
    """In a process of their own: a library that crashed would take the tests with it."""
    whole = (tiny_bundle / "mask_head.onnx").read_bytes()
    random = np.random.RandomState(11)
    files = []
    for number in range(count):
        content = bytearray(whole)
        # Half of them in the last 3 KB, where nodes and shapes stand; weights take the rest.
        low = 0 if number % 2 else len(whole) - 3000
        for _ in range(1 + number % 3):
            content[random.randint(low, len(whole))] = random.randint(256)
        if number % 5 == 0:
            del content[random.randint(low, len(whole)) :]
        files.append(tmp_path / f"mask_head-{number}.onnx")
        files[-1].write_bytes(content)
    left = [str(file) for file in files]
    while left:
        command = [sys.executable, "-c", _RUN_GRAPHS, str(tiny_bundle), *left]
        done = subprocess.run(command, capture_output=True, text=True)
        reached = len(done.stdout.splitlines())
        assert done.stdout.splitlines() == left[:reached], "nobody else prints"
        for _ in range(reached):
            with attempt("damaged graphs"):
                pass
        if reached < len(left):
            with attempt("damaged graphs"):
                raise AssertionError(f"{left[reached]}: {done.returncode} {done.stderr[-3000:]}")
        left = left[reached:]
        if not done.returncode:
            assert not left


def test_a_model_in_another_format_is_refused(
    tiny_bundle: Path,
    tmp_path: Path,
    resign: Resign,
    attempt: Attempt,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """ONNX Runtime would read its own format by its mark, which our walk does not see through."""
    folder = linked(tiny_bundle, tmp_path / "bundle", "mask_head.onnx", MANIFEST)
    (folder / "mask_head.onnx").write_bytes(b"\x20\0\0\0ORTM" + bytes(100))
    resign(folder)
    bundle = open_bundle(folder)
    with attempt("damaged graphs"), pytest.raises(BackendError, match="cannot load mask_head"):
        make_backend().open(bundle, ["mask_head"])
    assert not capfd.readouterr().out, "ONNX Runtime told of another provider"
