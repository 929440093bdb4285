"""Bundles are hashed before they are read, and refused with the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rvos_deploy.bundle.folder import MANIFEST, open_bundle, write_manifest
from rvos_deploy.errors import BundleError, InputError
from rvos_deploy.graph_io.graph_spec import AxisSpec, GraphSpec, TensorSpec
from rvos_deploy.networks.pan2024.contract import GRAPHS


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_whole_bundle_opens(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert tuple(bundle.graphs) == GRAPHS
    assert bundle.config.name == "tiny"
    assert {f"{name}.onnx" for name in GRAPHS} < set(bundle.manifest.files)


def test_one_changed_byte_in_any_file_is_refused(copy: Path) -> None:
    names = [file.name for file in copy.iterdir()]
    assert len(names) == 10
    for name in names:
        file = copy / name
        original = file.read_bytes()
        middle = len(original) // 2
        file.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            open_bundle(copy)
        file.write_bytes(original)
    open_bundle(copy)


def test_every_byte_of_the_manifest_counts(copy: Path) -> None:
    file = copy / MANIFEST
    original = file.read_bytes()
    for position in range(0, len(original), len(original) // 40):
        file.write_bytes(
            original[:position] + bytes([original[position] ^ 2]) + original[position + 1 :]
        )
        with pytest.raises(BundleError):
            open_bundle(copy)
    file.write_bytes(original + b" ")
    with pytest.raises(BundleError):
        open_bundle(copy)


def test_a_missing_or_cut_file_is_named(copy: Path) -> None:
    graph = copy / "mask_head.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"mask_head\.onnx has \d+ bytes"):
        open_bundle(copy)
    graph.unlink()
    with pytest.raises(BundleError, match=r"mask_head\.onnx is missing"):
        open_bundle(copy)


def test_a_newer_schema_says_upgrade(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["schema"] = 99
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="pip install --upgrade rvos-deploy"):
        open_bundle(copy)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such folder.*rvos-deploy export"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        open_bundle(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (tmp_path / "outside").write_text("x")
    for key in ("schema", "manifest_sha256", "files"):
        manifest.pop(key)
    write_manifest(copy, manifest, ["../outside"])
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(copy)


SPEC = GraphSpec(
    "g",
    inputs=(TensorSpec("a", "float32", ("E", "H/4", 3)), TensorSpec("b", "int64", ("E",))),
    outputs=(TensorSpec("y", "float32", ("E",)),),
    axes=(AxisSpec("E", 1, 4), AxisSpec("H", 32, 128, 32)),
    tolerance=1e-4,
)


def test_a_contract_survives_json() -> None:
    assert GraphSpec.from_dict(json.loads(json.dumps(SPEC.as_dict()))) == SPEC


def arrays(e: int = 2, h: int = 8, last: int = 3, e2: int = 2, dtype: str = "float32"):  # type: ignore[no-untyped-def]
    import numpy as np

    return {"a": np.zeros((e, h, last), dtype=dtype), "b": np.zeros(e2, dtype=np.int64)}


def test_a_contract_binds_axes() -> None:
    assert SPEC.bind(arrays()) == {"E": 2, "H": 32}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (arrays(e2=3), r"input b must be \[E\] with E=2, H=32, found \[3\]"),
        (arrays(last=4), r"input a must be \[E, H/4, 3\]"),
        (arrays(h=10), "axis H cannot be 40: needs 32 to 128 in multiples of 32"),
        (arrays(e=5, e2=5), "axis E cannot be 5"),
        (arrays(dtype="float16"), "must be float32, found float16"),
        ({"a": arrays()["a"]}, "inputs must be a, b; found a"),
    ],
)
def test_a_contract_refuses(inputs, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        SPEC.bind(inputs)
