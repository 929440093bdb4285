"""What ``auto`` means: the record of a trial, or the first library that is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rvos_deploy
from rvos_deploy.bundle.folder import Bundle, open_bundle, set_threshold
from rvos_deploy.cache_folder import VARIABLE
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.runtime.backends import registry, trial_record
from rvos_deploy.runtime.backends.choice import candidates_of, choose
from rvos_deploy.runtime.backends.registry import default_backend, make_backend
from rvos_deploy.runtime.backends.trial_record import (
    Result,
    Trial,
    read_trial,
    trial_file,
    trial_key,
    write_trial,
)
from rvos_deploy.stream_settings import StreamSettings

BOTH = ("onnxruntime", "openvino")
DEFAULTS = StreamSettings()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle where both libraries are installed, or are said to be."""
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    return open_bundle(tiny_bundle)


def results(onnxruntime: float | str, openvino: float | str) -> tuple[Result, ...]:
    return tuple(
        Result(backend=name, failure=found)
        if isinstance(found, str)
        else Result(backend=name, milliseconds=found)
        for name, found in zip(BOTH, (onnxruntime, openvino), strict=True)
    )


def record(bundle: Bundle, *found: float | str, **changes: Any) -> Path:
    """Write a trial with the times, or failures, of onnxruntime and openvino."""
    key = trial_key(bundle, changes.get("settings", DEFAULTS), changes.get("threads"))
    return write_trial(Trial(key=key, date="2026-11-30", results=results(*found)))


@pytest.mark.parametrize(
    ("found", "chosen", "reason"),
    [
        ((36.0, 29.0), "openvino", "29.0 ms a frame, onnxruntime 36.0 (trial of 2026-11-30)"),
        ((29.0, 36.0), "onnxruntime", "29.0 ms a frame, openvino 36.0 (trial of 2026-11-30)"),
        ((36.0, 35.0), "onnxruntime", "openvino 35.0, less than 5% apart (trial of 2026-11-30)"),
        ((36.0, "3 of 40 checks failed"), "onnxruntime", "left out: 3 of 40 checks failed"),
        (("cannot load x.onnx", 36.0), "openvino", "onnxruntime was left out: cannot load x.onnx"),
    ],
)
def test_a_trial_decides_and_says_why(
    bundle: Bundle, found: tuple[float | str, ...], chosen: str, reason: str
) -> None:
    record(bundle, *found)
    choice = choose("auto", bundle, DEFAULTS)
    assert choice.name == chosen
    assert reason in choice.reason
    assert len(choice.reason.splitlines()) == 1


def test_without_a_trial_it_is_the_first_and_names_the_command(bundle: Bundle) -> None:
    settings = StreamSettings(size=(64, 96))
    choice = choose("auto", bundle, settings, threads=2)
    assert choice.name == "onnxruntime"
    assert "openvino was not tried here" in choice.reason
    command = f"rvos-deploy choose-backend {bundle.path} --size 64x96 --threads 2"
    assert f"'{command}'" in choice.reason
    packaged = choose("auto", open_bundle("tiny"), DEFAULTS)
    assert "'rvos-deploy choose-backend tiny'" in packaged.reason


def test_a_named_back_end_asks_no_trial(bundle: Bundle) -> None:
    record(bundle, 36.0, 29.0)
    assert choose("onnxruntime", bundle, DEFAULTS).name == "onnxruntime"
    assert choose("onnxruntime", bundle, DEFAULTS).reason == ""


def test_a_trial_holds_for_its_bundle_size_threads_and_versions_only(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(bundle, 36.0, 29.0)
    own = bundle.config.input_size
    assert choose("auto", bundle, StreamSettings(size=own)).name == "openvino"
    assert choose("auto", bundle, StreamSettings(size=(64, 96))).name == "onnxruntime"
    assert choose("auto", bundle, StreamSettings(short_side=own[0])).name == "onnxruntime"
    assert choose("auto", bundle, DEFAULTS, threads=77).name == "onnxruntime"
    assert choose("auto", open_bundle("tiny"), DEFAULTS).name == "onnxruntime"
    real = trial_record.versions
    monkeypatch.setattr(
        trial_record, "versions", lambda *names: {**real(*names), "openvino": "9999.0"}
    )
    assert choose("auto", bundle, DEFAULTS).name == "onnxruntime"


def test_the_threshold_of_a_bundle_changes_no_trial(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    set_threshold(copy, online=0.25)
    keys = [trial_key(open_bundle(path), DEFAULTS, 2) for path in (tiny_bundle, copy)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\xff\xfe nonsense",
        lambda content: content.replace(b"29.0", b"-29.0"),
        lambda content: content.replace(b"29.0", b'"fast"'),
        lambda content: content.replace(b'openvino"', b'openvino\\u001b[31m"', 1),
        lambda content: content.replace(b'"threads": "', b'"threads": "1'),
        lambda content: content.replace(b"backend-trial/1", b"backend-trial/2"),
        lambda content: content + b" " * trial_record.MAXIMUM_BYTES,
    ],
)
def test_a_damaged_record_is_no_record(bundle: Bundle, damage: Any) -> None:
    file = record(bundle, 36.0, 29.0)
    changed = damage(file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    assert choose("auto", bundle, DEFAULTS).name == "onnxruntime"
    record(bundle, 36.0, 29.0)
    assert choose("auto", bundle, DEFAULTS).name == "openvino"


def test_a_forged_record_cannot_choose_what_auto_never_chooses(bundle: Bundle) -> None:
    file = record(bundle, 36.0, 29.0)
    file.write_bytes(file.read_bytes().replace(b'"backend": "openvino"', b'"backend": "tensorrt"'))
    trial = read_trial(trial_key(bundle, DEFAULTS, None))
    assert trial is not None
    assert trial.winner() is not None
    assert choose("auto", bundle, DEFAULTS).name == "onnxruntime"


def test_a_cache_that_cannot_be_read_or_written(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    assert choose("auto", bundle, DEFAULTS).name == "onnxruntime"
    with pytest.raises(InputError, match="cannot be written"):
        record(bundle, 36.0, 29.0)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert choose("auto", bundle, DEFAULTS).name == "onnxruntime"
    with pytest.raises(InputError, match=f"set {VARIABLE} to a folder"):
        trial_file(trial_key(bundle, DEFAULTS, None))


def test_nothing_is_left_beside_a_record(bundle: Bundle, cache: Path) -> None:
    for times in ((36.0, 29.0), (29.0, 36.0)):
        file = record(bundle, *times)
    assert [path for path in cache.rglob("*") if path.is_file()] == [file]
    assert choose("auto", bundle, DEFAULTS).name == "onnxruntime"


def test_one_installed_library_needs_no_trial(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in BOTH:
        monkeypatch.setattr(registry, "find_spec", lambda found, name=name: found == name or None)
        choice = choose("auto", bundle, DEFAULTS)
        assert (choice.name, default_backend()) == (name, name)
        assert choice.reason == "no other back end for the CPU is installed"


def test_bf16_bundles_and_gpus_are_as_before(bundle: Bundle) -> None:
    record(bundle, 36.0, 29.0)
    on_gpu = choose("auto", bundle, DEFAULTS, device="cuda")
    assert on_gpu.name == "onnxruntime"
    assert "GPU" in on_gpu.reason
    # msgspec records are replaced like dataclasses, but by their own function.
    import msgspec

    manifest = msgspec.structs.replace(bundle.manifest, precision="bf16")
    half = replace(bundle, manifest=manifest)
    assert candidates_of(half) == ()
    choice = choose("auto", half, DEFAULTS)
    assert choice.name == "onnxruntime"
    assert "bf16" in choice.reason


def test_nothing_installed_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BOTH:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"pip install 'rvos-deploy\[cpu\]'"):
        make_backend()


def test_load_follows_the_trial_and_records_it(tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    bundle = open_bundle(tiny_bundle)
    with rvos_deploy.load(tiny_bundle, threads=1) as segmenter:
        assert segmenter.backend.name == "onnxruntime"
        assert "not tried here" in segmenter.describe_backend()["auto"]
    record(bundle, 36.0, 29.0, threads=1)
    with rvos_deploy.load(tiny_bundle, threads=1) as segmenter:
        assert segmenter.backend.name == "openvino"
        assert "29.0 ms a frame" in segmenter.describe_backend()["auto"]
    with rvos_deploy.load(tiny_bundle, backend="onnxruntime", threads=1) as segmenter:
        assert segmenter.backend.name == "onnxruntime"
        assert "auto" not in segmenter.describe_backend()
    other = StreamSettings(size=(64, 96))
    with rvos_deploy.load(tiny_bundle, threads=1, settings=other) as segmenter:
        assert segmenter.backend.name == "onnxruntime"
    with pytest.raises(InputError, match="settings must be StreamSettings, found dict"):
        rvos_deploy.load(tiny_bundle, settings={"size": (64, 96)})  # type: ignore[arg-type]
