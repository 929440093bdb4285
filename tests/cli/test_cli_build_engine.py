"""``build-engine``: what it prints, writes and refuses; ``inspect`` on what it built."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from rvos_deploy.bundle.engine_sidecar import plan_file, sidecar_file
from rvos_deploy.engines.targets import TENSORRT, open_target
from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.gpu import find_gpu

needs_rtx = pytest.mark.skipif(find_gpu() is not None, reason="written for machines without a GPU")


@pytest.fixture
def bundle(bundle_copy: Callable[..., Path]) -> Path:
    """A bundle that engines may be put into."""
    return bundle_copy()


def test_tensorrt_explains_itself(rvos: Callable, bundle: Path) -> None:
    try:
        open_target(TENSORRT)
    except BackendError as error:
        expected = str(error)
    else:
        pytest.skip("this machine has TensorRT and a GPU")
    result = rvos("build-engine", bundle, "--target", "tensorrt")
    assert result.code == 2
    assert result.error == expected
    assert "is not installed" in result.error or "no NVIDIA GPU" in result.error
    assert "pip install 'rvos-deploy[tensorrt]'" in result.error
    assert rvos("build-engine", bundle).error == expected, "tensorrt is the default"
    assert not (bundle / "engines").exists()


def unwrapped(text: str) -> str:
    """Without white space: the table breaks long paths anywhere."""
    return "".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "H=100"), "H cannot be min 100, opt 100, max 100"),
        (("--profile", "sideways"), "'sideways' is not AXIS=MIN:OPT:MAX or AXIS=SIZE"),
        (("--profile", "E=2:4:8"), "no profile supports E=1, M=64"),
        (("--strip-weights",), "--strip-weights is for --target tensorrt only"),
        (("--graph", "head"), "--graph head: the bundle has backbone"),
        (("--optimization-level", "9"), "--optimization-level"),
        (("--target", "tensorrt-9"), "--target"),
        (("--device", "cpu"), "--device 'cpu' is no GPU; known: cuda, cuda:N (N counts"),
        (("--device", "GPU-1"), "--device 'GPU-1' is no GPU; known: cuda, cuda:N (N counts"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    rvos: Callable, bundle: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = rvos("build-engine", bundle, "--target", "tensorrt-rtx", *arguments)
    assert result.code == 2
    assert message in result.error
    assert not (bundle / "engines").exists()


@needs_rtx
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:1", "--device 'cuda:1': CUDA shows no GPU to this process; nvidia-smi -L lists"),
        (f"GPU-{uuid.UUID(int=5)}", "00000005' to this process; it shows none: check the driver"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_line(
    rvos: Callable, bundle: Path, device: str, message: str
) -> None:
    result = rvos("build-engine", bundle, "--device", device)
    assert result.code == 2
    assert message in result.error
    assert not (bundle / "engines").exists()


@needs_rtx
def test_rtx_builds_and_inspect_shows_it(rvos: Callable, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu12")
    command = ["build-engine", bundle, "--target", "tensorrt-rtx", "--graph", "mask_head"]
    result = rvos(*command, "--compute-capability", "8.9", "--json", tmp_path / "build.json")
    assert (result.code, result.stderr) == (0, "")
    line, last = result.stdout.splitlines()
    assert line.startswith("mask_head: ")
    assert line.endswith("multiplying layers: 3 float32")
    assert f"{bundle}: 1 engine for tensorrt-rtx " in last
    assert "compute capability 8.9; parity NOT RUN (built on a machine without a GPU" in last

    found = json.loads((tmp_path / "build.json").read_text(encoding="utf-8"))
    assert found["schema"] == "rvos-deploy/build-engine/1"
    assert found["command"] == "build-engine"
    (engine,) = found["engines"]
    plan = plan_file(bundle, "tensorrt-rtx", "mask_head")
    assert engine == json.loads(sidecar_file(plan).read_text(encoding="utf-8"))
    assert engine["plan_bytes"] == plan.stat().st_size

    result = rvos("inspect", bundle, "--json", tmp_path / "inspect.json")
    assert result.code == 0
    (row,) = (text for text in result.stdout.splitlines() if "tensorrt-rtx" in text)
    assert row.startswith(f"mask_head  {plan.stat().st_size / 2**20:.1f} MiB, tensorrt-rtx ")
    assert "fp32, compute capability 8.9" in row
    assert "H=32:128:128,W=32:224:224,E=1:2:8" in result.stdout
    assert "refused when loaded: no parity (built on a machine without a GPU" in result.stdout
    (shown,) = json.loads((tmp_path / "inspect.json").read_text(encoding="utf-8"))["engines"]
    assert shown == engine

    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    rebuild = f"rvos-deploy build-engine {bundle} --target tensorrt-rtx --compute-capability 8.9"
    shown = unwrapped(rvos("inspect", bundle).stdout)
    assert unwrapped("mask_head.plan was changed since it was built") in shown
    assert unwrapped(rebuild) in shown
    sidecar_file(plan).unlink()
    assert unwrapped("mask_head.plan has no sidecar") in unwrapped(rvos("inspect", bundle).stdout)


def test_inspect_without_engines_shows_none(rvos: Callable, bundle: Path, tmp_path: Path) -> None:
    result = rvos("inspect", bundle, "--json", tmp_path / "inspect.json")
    assert "compute capability" not in result.stdout
    assert json.loads((tmp_path / "inspect.json").read_text(encoding="utf-8"))["engines"] == []
