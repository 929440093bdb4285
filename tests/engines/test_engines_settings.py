"""Test settings, targets, the GPU's absence, the timing cache and the log. No TensorRT, no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rvos_deploy.engines import targets, timing_cache
from rvos_deploy.engines.messages import Messages
from rvos_deploy.engines.plugins.ms_deform_attn import compile, spec
from rvos_deploy.engines.settings import BuildSettings
from rvos_deploy.errors import BackendError, InputError
from rvos_deploy.runtime.backends.gpu import Gpu

RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9")


@pytest.mark.parametrize(
    ("target", "option", "message"),
    [
        ("tensorrt9", {}, "unknown target 'tensorrt9'; known: tensorrt, tensorrt-rtx"),
        ("tensorrt", {"optimization_level": 6}, "--optimization-level must be 0 to 5, found 6"),
        ("tensorrt", {"workspace_mib": 0}, "--workspace must be at least 1 MiB, found 0"),
        (
            "tensorrt",
            {"compute_capabilities": ("8.9",)},
            "--compute-capability is for --target tensorrt-rtx only",
        ),
        (
            "tensorrt-rtx",
            {"strip_weights": True},
            "--strip-weights is for --target tensorrt only; leave it out (it compiles stripped",
        ),
        (
            "tensorrt-rtx",
            {"version_compatible": True, "hardware_compatible": True},
            "--version-compatible, --hardware-compatible is for --target tensorrt only",
        ),
        ("tensorrt-rtx", {"timing_cache": Path("t")}, "(it times nothing)"),
    ],
)
def test_invalid_settings_are_refused(target: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        BuildSettings(target, **option)
    assert message in str(error.value)


def test_options_repeat_the_build() -> None:
    assert BuildSettings("tensorrt").options() == ()
    settings = BuildSettings(
        "tensorrt",
        profiles=("H=64", "E=1:2:3"),
        workspace_mib=512,
        optimization_level=0,
        timing_cache=Path("elsewhere"),
        version_compatible=True,
        strip_weights=True,
    )
    assert " ".join(settings.options()) == (
        "--profile H=64 --profile E=1:2:3 --workspace 512 --optimization-level 0 "
        "--version-compatible --strip-weights"
    )


def open_with(
    monkeypatch: pytest.MonkeyPatch, target: str, version: str | None, found: Gpu | None
) -> tuple[Any, Gpu | None]:
    """Open a target with a stand-in library of this version (None: not installed)."""

    def import_library(module: str, package: str) -> Any:
        return version and SimpleNamespace(__name__=module, __version__=version)

    monkeypatch.setattr(targets, "import_library", import_library)
    monkeypatch.setattr(targets, "find_gpu", lambda ordinal: found)
    return targets.open_target(targets.TARGETS[target])


@pytest.mark.parametrize(
    ("target", "version", "found", "message"),
    [
        (
            "tensorrt",
            None,
            None,
            "tensorrt is not installed, and there is no NVIDIA GPU with a driver here; "
            "on the machine with the GPU: pip install 'rvos-deploy[tensorrt]'",
        ),
        (
            "tensorrt",
            None,
            RTX4090,
            "tensorrt is not installed; pip install 'rvos-deploy[tensorrt]'",
        ),
        (
            "tensorrt",
            "11.4.0.106",
            None,
            "tensorrt 11.4.0.106 is installed, but there is no NVIDIA GPU with a driver here",
        ),
        ("tensorrt", "10.2.0", RTX4090, "tensorrt 10.2.0 is installed, 10.3 or newer is needed"),
        (
            "tensorrt-rtx",
            None,
            None,
            "tensorrt_rtx is not installed; pip install 'rvos-deploy[tensorrt-rtx]'",
        ),
    ],
)
def test_missing_libraries_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    version: str | None,
    found: Gpu | None,
    message: str,
) -> None:
    with pytest.raises(BackendError) as error:
        open_with(monkeypatch, target, version, found)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    if target == "tensorrt" and found is None:
        assert "--target tensorrt-rtx" in str(error.value)


@pytest.mark.parametrize(
    ("target", "version", "takes"),
    [
        ("tensorrt", "10.3.0", False),
        ("tensorrt", "10.9.0.34", True),
        ("tensorrt", "10.16.1.11", True),
        ("tensorrt", "11.4.0.106", True),
        ("tensorrt-rtx", "1.7.1.116", False),
    ],
)
def test_the_versions_that_take_our_plugin(target: str, version: str, takes: bool) -> None:
    library = SimpleNamespace(__version__=version)
    assert targets.takes_plugin(targets.TARGETS[target], library) is takes


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_a_half_installed_library_is_not_taken_for_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Exception]
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {kind.__name__}('libnvinfer.so.11: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendError) as error:
        targets.open_target(targets.TENSORRT)
    assert str(error.value) == (
        "tensorrt is installed but cannot be loaded (libnvinfer.so.11: not found); install it "
        "again: pip install --force-reinstall 'tensorrt'"
    )


def test_installed_targets_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    library, found = open_with(monkeypatch, "tensorrt", "11.4.0.106", RTX4090)
    assert (library.__name__, found) == ("tensorrt", RTX4090)
    library, found = open_with(monkeypatch, "tensorrt-rtx", "1.7.1.116", None)
    assert (library.__name__, found) == ("tensorrt_rtx", None)


def test_the_timing_cache_lies_in_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RVOS_DEPLOY_CACHE", str(tmp_path / "cache"))
    file = timing_cache.default_cache_file("11.4.0.106", RTX4090.name)
    name = f"timing-tensorrt-11.4.0.106-nvidia-geforce-rtx-4090-{compile.kernel_hash()}.cache"
    assert file == tmp_path / "cache" / name
    assert timing_cache.read_cache(file) == b""
    timing_cache.write_cache(file, b"timings")
    assert timing_cache.read_cache(file) == b"timings"
    assert [path.name for path in file.parent.iterdir()] == [name]


@pytest.mark.parametrize("changed", ["source", "tactics"])
def test_a_changed_kernel_is_timed_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    """TensorRT keeps a plugin's timings by its name, which a change of the kernel leaves alone."""
    before = timing_cache.default_cache_file("11.4.0.106", RTX4090.name)
    if changed == "source":
        source = tmp_path / "kernel.cu"
        source.write_bytes(compile.SOURCE.read_bytes() + b"\n// faster")
        monkeypatch.setattr(compile, "SOURCE", source)
    else:
        monkeypatch.setattr(compile, "TACTICS", {1: spec.Tactic(64, 1)})
    assert timing_cache.default_cache_file("11.4.0.106", RTX4090.name) != before


class StandInConfig:
    """Stands in for ``IBuilderConfig``: takes an empty timing cache only."""

    def __init__(self) -> None:
        self.cache: bytes | None = None

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache:
            return False
        self.cache = cache
        return True


def test_timings_of_another_gpu_are_not_used(tmp_path: Path) -> None:
    file, config = tmp_path / "t.cache", StandInConfig()
    file.write_bytes(b"of another GPU")
    with pytest.warns(UserWarning, match="is of another TensorRT or GPU: a new one is started"):
        timing_cache.attach_cache(config, file)
    assert config.cache == b""


def test_messages_are_kept_once_and_the_useful_error_comes_first() -> None:
    messages = Messages()
    assert messages.cause == "TensorRT gave no reason"
    for text in ("[checkMacros.cpp::catchCudaError::250] no driver", "node x:\n  wrong", "later"):
        messages.add(text)
    messages.add("later")
    assert messages.cause == "node x: wrong"
    assert len(messages.errors) == 3
