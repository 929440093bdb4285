"""``verify`` and ``inspect``: what they print, what they write, when they fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rvos_deploy.bundle.folder import MANIFEST, PARITY, write_manifest
from rvos_deploy.cli.parity_table import parity_table
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.networks.pan2024.contract import GRAPHS


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_verify_prints_the_table_and_passes(
    process: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = process("verify", tiny_bundle, "--json", tmp_path / "v" / "verify.json")
    assert (result.code, result.stderr) == (0, "")
    header, *rows, choice, last = result.stdout.splitlines()
    for title in ("max abs", "tolerance", "max rel", "cosine", "worst at"):
        assert title in header
    found = read(tmp_path / "v" / "verify.json")
    assert found["schema"] == "rvos-deploy/verify/1"
    assert found["command"] == "verify"
    assert found["passed"] is True
    assert found["left_out"] == []
    assert found["versions"]["backend"]["name"] == "onnxruntime"
    assert choice == f"--backend auto: onnxruntime; {found['versions']['backend']['auto']}"
    assert found["machine"]["cores"] >= 1
    checks = found["checks"]
    assert len(rows) == len(checks)
    for row, check in zip(rows, checks, strict=True):
        assert row.startswith(check["name"])
        assert row.rstrip().endswith("ok")
        assert check["passed"] is True
    for graph in GRAPHS:
        assert any(check["name"].startswith(f"{graph} ") for check in checks)
    numbers = [check for check in checks if "max_abs" in check]
    assert all(check["max_abs"] <= check["tolerance"] for check in numbers)
    (masks,) = (check for check in checks if "j_and_f" in check)
    assert masks["j_and_f"] >= masks["tolerance"] > 0.99
    assert 0 < masks["foreground"] < 1, "a clip whose masks are empty or full proves nothing"
    assert f"{len(checks)} checks passed" in last


def test_verify_fails_where_the_recorded_outputs_differ(
    rvos: Callable, bundle_copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bundle_copy(PARITY, MANIFEST)
    with np.load(folder / PARITY) as file:
        recorded = {name: file[name] for name in file.files}
    wrong = next(name for name in recorded if name.startswith("video_decoder"))
    recorded[wrong] = recorded[wrong] + np.float32(0.01)
    np.savez_compressed(folder / PARITY, **recorded)
    manifest = read(folder / MANIFEST)
    names = list(manifest.pop("files"))
    kept = {k: v for k, v in manifest.items() if k not in ("schema", "manifest_sha256")}
    write_manifest(folder, kept, names)
    result = rvos("verify", folder, "--json", tmp_path / "verify.json")
    assert (result.code, result.stderr) == (1, "")
    found = read(tmp_path / "verify.json")
    assert found["passed"] is False
    assert [check["name"] for check in found["checks"] if not check["passed"]] == [wrong]
    (row,) = (line for line in result.stdout.splitlines() if line.startswith(wrong))
    assert row.rstrip().endswith("FAILED")
    assert f"1 of {len(found['checks'])} checks FAILED" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(("width", "details"), [(80, False), (120, True)])
def test_the_table_is_never_cut(tiny_bundle: Path, width: int, details: bool) -> None:
    checks = read(tiny_bundle / MANIFEST)["parity"]["checks"]
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(parity_table(checks, width))
    header, *rows = capture.get().splitlines()
    assert len(rows) == len(checks)
    assert "…" not in capture.get()
    assert all(row.rstrip().endswith("ok") for row in rows)
    assert ("cosine" in header) is details


def test_inspect_shows_what_is_in_the_bundle(rvos: Callable, tiny_bundle: Path) -> None:
    result = rvos("inspect", tiny_bundle)
    assert (result.code, result.stderr) == (0, "")
    shown, manifest = result.stdout, read(tiny_bundle / MANIFEST)
    assert "random, seed 0" in shown
    assert "128x224" in shown
    assert "fp32" in shown
    assert f"torch {manifest['versions']['torch']}" in shown
    checks = manifest["parity"]["checks"]
    assert f"{len(checks)} checks against PyTorch" in shown
    for name, graph in manifest["graphs"].items():
        mebibytes = manifest["files"][f"{name}.onnx"]["bytes"] / 2**20
        assert f"{name}, {mebibytes:.1f} MiB" in shown
        for tensor in (*graph["inputs"], *graph["outputs"]):
            assert f"{tensor['name']} {tensor['dtype']}[" in shown
    assert "H/32" in shown
    assert checks[0]["name"] not in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize("built", [True, False])
def test_inspect_says_whether_the_cpu_kernel_was_built(
    built: bool, rvos: Callable, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "available", lambda: built)
    monkeypatch.setattr(kernel, "instructions", lambda: "AVX2")
    shown = " ".join(rvos("inspect", tiny_bundle, "--json", tmp_path / "i.json").stdout.split())
    found = "built, uses AVX2;" if built else "not built, so the function body runs, more slowly;"
    assert f"this machine CPU kernel of deformable attention: {found}" in shown
    assert ("then reinstall rvos-deploy" in shown) != built
    assert read(tmp_path / "i.json")["cpu_kernel"] == ("AVX2" if built else None)


def test_inspect_parity_shows_every_check(rvos: Callable, tiny_bundle: Path) -> None:
    result = rvos("inspect", tiny_bundle, "--parity")
    assert result.code == 0
    for check in read(tiny_bundle / MANIFEST)["parity"]["checks"]:
        assert check["name"] in result.stdout


def test_inspect_writes_the_manifest(rvos: Callable, tiny_bundle: Path, tmp_path: Path) -> None:
    assert rvos("inspect", tiny_bundle, "--json", tmp_path / "inspect.json").code == 0
    found = read(tmp_path / "inspect.json")
    assert found["schema"] == "rvos-deploy/inspect/1"
    assert found["command"] == "inspect"
    assert found["manifest"] == read(tiny_bundle / MANIFEST)
    assert {"versions", "machine", "bundle"} <= set(found)
