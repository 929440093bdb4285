"""Test the benchmark of deformable attention: its contenders agree, and a wrong one is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rvos_deploy.benchmarks import deformable_attention as benchmark
from rvos_deploy.cpu_ops import ms_deform_attn as kernel
from rvos_deploy.errors import InputError, ParityError

pytestmark = pytest.mark.skipif(
    not kernel.available(), reason="the CPU kernel was not built: there was no C++ compiler"
)
SMALL = {"small": ([(6, 8), (3, 4)], 16)}


def test_the_result_holds_every_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    monkeypatch.setattr(benchmark, "SHAPES", SMALL)
    app = typer.Typer()
    app.command()(benchmark.main)
    shown = CliRunner().invoke(app, ["--rounds", "3", "--json", str(tmp_path / "r.json")])
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "r.json").read_text())
    labels = set(found["shapes"]["small"])
    assert f"kernel, {kernel.instructions()}" in labels
    assert {"floor: read the rows", "grid_sample, PyTorch", "function body, ONNX Runtime"} < labels
    assert all(one["count"] == 3 for one in found["shapes"]["small"].values())


def test_a_kernel_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", SMALL)
    right = kernel.ms_deform_attn

    def wrong(*arguments: Any) -> Any:
        return right(*arguments) + np.float32(1e-3)

    monkeypatch.setattr(kernel, "ms_deform_attn", wrong)
    with pytest.raises(ParityError, match=r"small: 'kernel, .*' differs from PyTorch by 1.0e-03"):
        benchmark.measure("small", 1, 3)


def test_the_floor_sums_the_sampled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", SMALL)
    inputs = benchmark.make_inputs("small")
    pixels = benchmark.sampled_pixels(inputs)
    found = kernel.sum_rows(inputs, pixels)
    value = inputs.value[0].astype(np.float64)
    for query, head in ((0, 0), (17, 3), (59, 7)):
        wanted = value[pixels[0, query, head], head].sum(0)
        assert np.abs(found[0, query, head * 16 : head * 16 + 16] - wanted).max() <= 1e-4
    with pytest.raises(InputError, match="pixels from 0 to 59"):
        kernel.sum_rows(inputs, pixels + 60)
    with pytest.raises(InputError, match="they must be int32"):
        kernel.sum_rows(inputs, pixels[..., 1:])
