"""Models that ONNX Runtime optimised once: the same numbers, and only bytes that were hashed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from rvos_deploy.bundle.folder import Bundle, open_bundle
from rvos_deploy.bundle.onnx_file import OnnxFile
from rvos_deploy.cache_folder import VARIABLE
from rvos_deploy.graph_io.probe import probe_inputs
from rvos_deploy.runtime.backends.onnxruntime import optimised_models
from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="models are kept by their owner")

MODEL = "frame_decoder"
"""The only model with functions, and so the only one that is kept."""
AXES = {"E": 2, "H": 64, "W": 96, "L": 9, "M": 3}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / optimised_models.FOLDER


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The models that ONNX Runtime was given."""
    given: list[bytes] = []
    real = onnxruntime.InferenceSession

    def session(model: bytes, *arguments: Any, **options: Any) -> Any:
        given.append(model)
        return real(model, *arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return given


def outputs(bundle: Bundle, name: str = MODEL) -> Mapping[str, Any]:
    spec = bundle.graphs[name]
    inputs = probe_inputs(spec, spec.axis_sizes(AXES), 0, bundle.network.probe_makers)
    with OnnxRuntimeBackend(threads=1).open(bundle, [name]) as session:
        return {key: np.array(value) for key, value in session.graphs[name].run(inputs).items()}


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize(
    "which", ["tiny_bundle", pytest.param("tiny_bundle_fp16", marks=pytest.mark.slow)]
)
def test_a_kept_model_gives_the_same_bits(
    request: pytest.FixtureRequest, folder: Path, parsed: list[bytes], which: str
) -> None:
    bundle = open_bundle(request.getfixturevalue(which))
    for file in kept(folder):
        file.unlink()  # of an export that the fixture has just made
    for name in sorted(bundle.graphs, key=lambda name: name != MODEL):
        first, second = outputs(bundle, name), outputs(bundle, name)
        (file,) = kept(folder)
        original, reopened = parsed[-2:]
        assert original == bundle.graph_file(name).read_model()
        assert reopened == (file.read_bytes() if name == MODEL else original)
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key])
    assert file.stat().st_mode & 0o777 == 0o600


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def _strangers(file: Path) -> None:
    file.chmod(0o622)


def _symlink(file: Path) -> None:
    real = file.rename(file.with_name("elsewhere"))
    _flip(real)
    file.symlink_to(real)


@pytest.mark.parametrize("change", [_flip, _cut, _strangers, _symlink])
def test_a_model_that_was_changed_is_not_parsed_but_replaced(
    tiny_bundle: Path, folder: Path, parsed: list[bytes], change: Any
) -> None:
    bundle = open_bundle(tiny_bundle)
    expected = outputs(bundle)
    (file,) = kept(folder)
    change(file)
    parsed.clear()
    for _ in range(2):
        found = outputs(bundle)
        np.testing.assert_array_equal(found["frame_queries"], expected["frame_queries"])
    (file,) = (file for file in kept(folder) if file.suffix == ".onnx")
    assert parsed == [bundle.graph_file(MODEL).read_model(), file.read_bytes()]
    assert not file.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_model_that_onnxruntime_refuses_is_replaced(
    tiny_bundle: Path, folder: Path, parsed: list[bytes]
) -> None:
    """Its name holds its hash, as after a bug of another version of this package."""
    bundle = open_bundle(tiny_bundle)
    expected = outputs(bundle)
    (file,) = kept(folder)
    nonsense = b"no model"
    file.unlink()
    forged = folder / f"{file.name.split('.')[0]}.{hashlib.sha256(nonsense).hexdigest()}.onnx"
    forged.write_bytes(nonsense)
    forged.chmod(0o600)
    parsed.clear()
    found = outputs(bundle)
    np.testing.assert_array_equal(found["frame_queries"], expected["frame_queries"])
    assert parsed == [nonsense, bundle.graph_file(MODEL).read_model()]
    (file,) = kept(folder)
    outputs(bundle)
    assert parsed[-1] == file.read_bytes() != nonsense


def test_another_version_opens_the_original(
    tiny_bundle: Path, folder: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(tiny_bundle)
    outputs(bundle)
    monkeypatch.setattr(onnxruntime, "__version__", "0.0.1")
    outputs(bundle)
    assert parsed[0] == parsed[1] == bundle.graph_file(MODEL).read_model()
    assert len(kept(folder)) == 2


def test_files_of_no_bundle_are_not_kept(tiny_bundle: Path, folder: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    file = OnnxFile(bundle.graph_file(MODEL).path)
    with OnnxRuntimeBackend(threads=1).open_files([(bundle.graphs[MODEL], file)]):
        assert kept(folder) == []


def test_a_cache_that_cannot_be_written_costs_nothing_else(tiny_bundle: Path, folder: Path) -> None:
    folder.parent.write_text("a file where the folder should be")
    assert np.isfinite(outputs(open_bundle(tiny_bundle))["frame_queries"]).all()
    assert folder.parent.is_file()


FULL = """
import resource, signal, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import rvos_deploy
with rvos_deploy.load(sys.argv[1], backend="onnxruntime", threads=1):
    print("opened")
"""


def test_a_full_disk_costs_nothing_else_and_leaves_nothing(tiny_bundle: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, tiny_bundle], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "opened\n", "")
    assert kept(folder) == []


def test_the_least_recently_used_models_go_first(
    tiny_bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(tiny_bundle)

    def used(version: str) -> Path:
        """Open the model with a version of ONNX Runtime; return the file that was used."""
        monkeypatch.setattr(onnxruntime, "__version__", version)
        outputs(bundle)
        return max(folder.iterdir(), key=lambda file: file.stat().st_mtime)

    first, second = used("1"), used("2")
    left = folder / ".killed.onnx.0123456789ab.part"
    left.write_bytes(b"half a model")
    for time, file in enumerate((left, first, second)):
        os.utime(file, (time, time))
    assert used("1") == first
    monkeypatch.setattr(optimised_models, "MAXIMUM_BYTES", 2 * first.stat().st_size + 1)
    third = used("3")
    assert kept(folder) == sorted([first, third])
