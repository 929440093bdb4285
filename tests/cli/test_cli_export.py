"""``export``: its report, its refusals, and that nothing unproven is left behind.

Writing ONNX files and checking them takes most of a minute, so these tests hand out those of
``tiny_bundle`` with its network, and check them at the smallest size; the rest is the real thing.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.bundle.manifest import plain
from rvos_deploy.cli.export import export
from rvos_deploy.networks.pan2024.contract import probe_cases
from rvos_deploy.networks.pan2024.modules.network import RvosNetwork
from rvos_deploy.networks.pan2024.network import Pan2024
from rvos_deploy.parity.verification import MINIMUM_J_AND_F, check_tensor


@pytest.fixture
def ready_graphs(
    tiny_bundle: Path, tiny_network: RvosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rvos_deploy.export import bundle_export, pan2024
    from rvos_deploy.export.weights import Weights, load_with_origin

    def copied(graph: Any, folder: Path, store: str, opset: int | None) -> list[Path]:
        return [Path(shutil.copy(tiny_bundle / f"{graph.spec.name}.onnx", folder))]

    monkeypatch.setattr(bundle_export, "export_graph", copied)
    origin = load_with_origin(tiny_network.config, Weights(random=True))[1]
    monkeypatch.setattr(pan2024, "load_with_origin", lambda *_: (tiny_network, origin))
    monkeypatch.setattr(Pan2024, "probe_cases", lambda self: probe_cases(self.config)[:1])


@pytest.fixture
def impossible_tolerance(ready_graphs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from rvos_deploy.export import parity

    monkeypatch.setattr(
        parity,
        "check_tensor",
        lambda name, tolerance, *arrays: check_tensor(name, -tolerance, *arrays),
    )


@pytest.mark.usefixtures("ready_graphs")
def test_export_reports_what_it_proved(rvos: Callable, tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "tiny"
    arguments = ("--random-weights", "--out", out, "--json", tmp_path / "export.json")
    result = rvos("export", "tiny", *arguments)
    assert (result.code, result.stderr) == (0, "")
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    checks = open_bundle(out).manifest.parity.checks
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{out}: ")
    assert f"{len(checks)} parity checks passed" in first
    assert "J&F of the masks 1.0000" in first
    assert "peak memory" in second
    found = json.loads((tmp_path / "export.json").read_text(encoding="utf-8"))
    assert found["schema"] == "rvos-deploy/export/1"
    assert found["checks"] == [plain(check) for check in checks]
    assert found["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert {"command", "versions", "machine", "seconds", "peak_memory_bytes"} <= set(found)


@pytest.mark.usefixtures("ready_graphs")
def test_a_stated_excess_of_slots_is_recorded_and_shown(rvos: Callable, tmp_path: Path) -> None:
    arguments = ("--random-weights", "--out", tmp_path / "stated", "--maximum-slot-excess", "0.3")
    assert rvos("export", "tiny", *arguments, "--minimum-j-and-f", "0.97").code == 0
    shown = " ".join(rvos("inspect", tmp_path / "stated").stdout.split())
    assert "J&F of the clip's masks 0.97, excess cost of slots 0.3" in shown
    assert "(the default)" not in shown
    assert rvos("export", "tiny", "--random-weights", "--out", tmp_path / "plain").code == 0
    shown = " ".join(rvos("inspect", tmp_path / "plain").stdout.split())
    assert "J&F of the clip's masks 0.999, excess cost of slots 0.0016 (the default)" in shown
    refused = rvos("export", "tiny", "--random-weights", "--out", tmp_path / "n", arguments[3], -1)
    assert refused.code == 2


def test_the_minimum_is_the_one_that_bundles_are_judged_by() -> None:
    """Written out in the command, whose start-up does not import what judges."""
    assert inspect.signature(export).parameters["minimum"].default == MINIMUM_J_AND_F


@pytest.mark.usefixtures("impossible_tolerance")
def test_a_failing_check_leaves_nothing(rvos: Callable, tmp_path: Path) -> None:
    result = rvos("export", "tiny", "--random-weights", "--out", tmp_path / "b" / "t")
    assert result.code == 1
    assert "parity checks failed, no bundle was written: backbone H32 W32 res2" in result.error
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("impossible_tolerance")
def test_a_failing_check_keeps_the_bundle_that_was_there(
    rvos: Callable, bundle_copy: Callable[..., Path], tmp_path: Path
) -> None:
    old = bundle_copy()
    arguments = ("--random-weights", "--overwrite", "--out", old)
    assert rvos("export", "tiny", *arguments).code == 1
    assert list(tmp_path.iterdir()) == [old]
    open_bundle(old)


def test_no_weights_names_the_ways_out(rvos: Callable, tmp_path: Path) -> None:
    result = rvos("export", "large", "--out", tmp_path / "bundle")
    assert result.code == 2
    for part in (
        "laion2b_s29b_b131k_ft_soup",
        "--checkpoint",
        "--clip-weights FILE",
        "--random-weights",
    ):
        assert part in result.error
    result = rvos("export", "tiny", "--out", tmp_path / "bundle")
    assert result.code == 2
    assert "--checkpoint" in result.error
    assert "--random-weights" in result.error
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_not_there(rvos: Callable, tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    result = rvos("export", "tiny", "--checkpoint", gone, "--out", tmp_path / "bundle")
    assert result.code == 2
    assert str(gone) in result.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["plain", "overwrite"])
def test_a_folder_with_other_files_is_left_alone(
    rvos: Callable, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.txt").write_text("mine", encoding="utf-8")
    result = rvos("export", "tiny", "--random-weights", "--out", out, *options)
    assert result.code == 2
    assert str(out) in result.error
    assert "another --out" in result.error
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter1.txt"]
    assert (out / "chapter1.txt").read_text(encoding="utf-8") == "mine"
