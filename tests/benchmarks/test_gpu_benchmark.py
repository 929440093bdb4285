"""Test the GPU benchmark without a GPU: dry run, refusals, guarded steps, record and page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rvos_deploy.benchmarks import gpu, gpu_steps
from rvos_deploy.benchmarks import gpu_report_parts as parts
from rvos_deploy.benchmarks.gpu_clocks import Reading
from rvos_deploy.benchmarks.gpu_plan import PLAN, Request, choose_gpu_specs, new_record
from rvos_deploy.benchmarks.gpu_report import render
from rvos_deploy.benchmarks.gpu_specs import GPU_SPECS
from rvos_deploy.benchmarks.gpu_steps import REFERENCE, STEPS, Run
from rvos_deploy.benchmarks.gpu_test_run import GPU_TESTS, read_junit
from rvos_deploy.benchmarks.gpu_turns import masks_j_and_f
from rvos_deploy.benchmarks.rounds import spread_of
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.engines.profiles import read_profiles
from rvos_deploy.errors import BackendError, InputError, ParityError
from rvos_deploy.networks.pan2024.contract import probe_cases
from rvos_deploy.runtime.backends.gpu import Gpu

Record = dict[str, Any]


def call(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(gpu.main)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def request_(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Request:
    out = tmp_path_factory.mktemp("gpu")
    return Request(open_bundle(tiny_bundle), out, expressions=2, frames=10, checkpoint=None)


@pytest.fixture(scope="module")
def planned(request_: Request) -> str:
    """Return a record before any step as JSON, so that every test has its own copy."""
    return json.dumps(new_record(request_, GPU_SPECS, "a <command>"))


def test_the_dry_run_prints_and_writes_plan_and_rooflines(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    done = call("--dry-run", "--bundle", str(tiny_bundle), "--out", str(out))
    assert done.exit_code == 0, done.output
    for word in (*(card.name for card in GPU_SPECS), *(step.name for step in PLAN), "frames/s"):
        assert word in done.output
    assert "in a fresh environment: pip install -e '.[gpu-benchmark]'" in done.output
    assert "lock the SM clock before it: sudo nvidia-smi -i UUID -lgc MHZ" in done.output
    assert max(map(len, done.output.splitlines())) <= 120
    record = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    assert record["schema"] == "rvos-deploy/benchmark/gpu/2"
    assert record["steps"] == {}
    assert record["axes"] == {"H": 128, "W": 224, "E": 1, "L": 9, "M": 64}
    for row in record["floors"]:
        graphs = row["graphs"]
        for graph, cost in record["costs"].items():
            bandwidth = row["rates"]["bytes_per_second"]
            assert graphs[graph]["memory_milliseconds"] == cost["total_bytes"] / bandwidth * 1e3
        frame = sum(one["milliseconds"] for name, one in graphs.items() if name != "text_encoder")
        assert row["frame_milliseconds"] == pytest.approx(frame)
        assert row["frames_per_second"] == pytest.approx(1e3 / frame)
    page = (out / "gpu.html").read_text(encoding="utf-8")
    assert "A dry run: nothing on this page was measured" in page
    assert "http" not in page  # needs nothing beside it


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("rvos_deploy.runtime.backends.gpu.find_gpu", lambda: None)
    done = call("--bundle", str(tiny_bundle), "--out", str(tmp_path / "new"))
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert "no NVIDIA GPU" in done.output
    assert "--dry-run" in done.output
    assert not (tmp_path / "new").exists()


def test_with_a_gpu_a_folder_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvos_deploy.runtime.backends.gpu.find_gpu", lambda: Gpu("A card", "8.9"))
    done = call()
    assert done.exit_code == 2
    assert "--out DIR" in done.output


@pytest.mark.parametrize("option", ["--video", "--operator"])
def test_what_is_measured_with_must_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    monkeypatch.setattr("rvos_deploy.runtime.backends.gpu.find_gpu", lambda: Gpu("A card", "8.9"))
    done = call("--out", str(tmp_path / "new"), option, str(tmp_path / "absent"))
    assert done.exit_code == 2
    assert done.output.strip().endswith(
        "there is no such " + ("file" if option == "--video" else "folder")
    )
    assert not (tmp_path / "new").exists()


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    assert [card.name for card in choose_gpu_specs(["l4", "T4"])] == ["L4", "T4"]
    with pytest.raises(InputError, match=r"card 'Voodoo'; known: T4, A10, L4"):
        choose_gpu_specs(["Voodoo"])


def test_every_planned_step_has_a_function() -> None:
    assert [step.name for step in PLAN] == list(STEPS)


def test_more_expressions_cost_more_but_share_the_backbone(request_: Request) -> None:
    record = new_record(request_, GPU_SPECS[:1], "")
    one = new_record(Request(request_.bundle, None, 1, 10, None), GPU_SPECS[:1], "")

    def macs(of: Record, graph: str) -> int:
        return int(of["costs"][graph]["total_macs"])

    assert macs(record, "backbone") == macs(one, "backbone")
    assert macs(record, "text_encoder") == macs(one, "text_encoder")  # runs once an expression
    assert macs(record, "video_decoder") == 2 * macs(one, "video_decoder")


def test_engines_support_the_cases_of_verify(request_: Request) -> None:
    (profile,) = read_profiles([gpu_steps.engine_profile(request_)], request_.bundle)
    assert profile["E"] == (1, 2, 8)
    for case in probe_cases(request_.bundle.config):
        for axis, size in case.items():
            assert profile[axis][0] <= size <= profile[axis][2]


def test_every_test_that_needs_a_gpu_is_run() -> None:
    tests = Path(__file__).parents[1]
    marked = {
        file.relative_to(tests.parent).as_posix()
        for file in tests.rglob("test_*.py")
        if file != Path(__file__)
        and re.search(r"pytest\.mark\.gpu|each_device", file.read_text(encoding="utf-8"))
    }
    assert marked == set(GPU_TESTS)


def raising(error: Exception) -> Any:
    def work(run: Run) -> Record:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ImportError("no", name="tensorrt"), "not run", "tensorrt is not installed"),
        (BackendError("no such device"), "not run", "no such device"),
        (ParityError("3 of 4 differ"), "failed", "3 of 4 differ"),
        (RuntimeError("CUDA error\nat line 3"), "failed", "RuntimeError: CUDA error at line 3"),
        (RuntimeError(), "failed", "RuntimeError: no message"),
    ],
)
def test_a_step_that_fails_is_recorded(
    request_: Request, tmp_path: Path, error: Exception, status: str, reason: str
) -> None:
    outcome = gpu_steps.guarded(raising(error), Run(request_, tmp_path, {}))
    assert (outcome["status"], outcome["reason"]) == (status, reason)
    assert outcome["seconds"] >= 0


def figures(*, passed: bool = True) -> Record:
    """Return made-up figures of a back end that was opened."""
    return {
        "backend": {"name": "x"},
        "load_seconds": 1.0,
        "memory": {"gpu_bytes": 2**30, "resident_bytes": 2**30},
        "parity": {
            "passed": passed,
            "checks": 9,
            "failed": [] if passed else ["backbone"],
            **dict.fromkeys(("j", "f", "j_and_f"), 0.9),
        },
        "demo": {"j": 0.5, "f": 0.5, "j_and_f": 0.5, "expressions": 3},
    }


CLOCKS = [
    {
        "readings": 5,
        "sm_mhz": {"min": low, "p50": 1700, "max": 1800},
        "steady": False,
        "watts": {"min": 60.0, "p50": 70.0, "max": 72.4},
        "celsius": 60,
        "throttled": ["power limit"],
    }
    for low in (1500, 1700)
]
UNREAD = [{"reason": "nvidia-ml-py is not installed"}]


def times(*rounds: float) -> Record:
    """Return made-up times of rounds, whose median is ``p50``."""
    p50 = sorted(rounds)[len(rounds) // 2]
    return {
        "count": 10,
        "frames_per_second": 1e3 / p50,
        "milliseconds": {"p50": p50, "p90": 2 * p50, "p95": 2 * p50, "p99": 3 * p50},
        "rounds": spread_of(rounds),
    }


def streams(run: Run) -> Record:
    """Measure nothing: one back end agrees with the reference, and one does not."""
    ours, theirs = (np.array([[masks]], np.uint8) for masks in ([255, 0], [0, 255]))
    run.masks = {"tensorrt": (ours,), "onnxruntime cuda": (theirs,), REFERENCE: (ours,)}
    rates = {"tensorrt": (4.9, 5.0, 5.1), "onnxruntime cuda": (9, 10, 12), REFERENCE: (20, 20, 20)}
    contenders = {
        name: {
            **times(*rounds),
            "warm_up_frames": 72,
            "stages": {},
            "clocks": UNREAD if name == REFERENCE else CLOCKS,
        }
        for name, rounds in rates.items()
    }
    missing = {"tensorrt-rtx": "RuntimeError: an <illegal> address"}
    return {"rounds": 3, "contenders": contenders, "missing": missing}


def graphs(run: Run) -> Record:
    names = ("backbone", "text_encoder", "frame_decoder", "video_decoder", "mask_head")
    contenders = {name: dict.fromkeys(names, times(5.0, 5.0, 5.2)) for name in ("tensorrt",)}
    return {"rounds": 3, "contenders": contenders, "missing": {}}


def video(run: Run) -> Record:
    names = ("decode", "resize and upload", "backbone", "masks down", "encode")
    stages = {name: spread_of([1.0 + place] * 3) for place, name in enumerate(names)}
    job = {
        "frames": 64,
        "frames_per_second": spread_of([70.0, 71.0, 80.0]),
        "stages": stages,
        "clocks": CLOCKS,
    }
    missing = {REFERENCE: "the disk is full"}
    return {"rounds": 3, "video": "clip.mp4", "contenders": {"tensorrt": job}, "missing": missing}


RATES = {
    "bytes_per_second": 3e11,
    "fp32_flops": 2e13,
    "fp16_flops": 1e14,
    "bf16_flops": None,
    "tf32_flops": 5e13,
}


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, request_: Request, planned: str) -> Record:
    """Run all steps with made-up figures: one back end agrees, one differs, one is missing."""
    monkeypatch.setattr(gpu_steps, "measure_rates", lambda: RATES)
    steps = {
        "machine": lambda run: {
            "name": "A card",
            "compute_capability": "8.9",
            "nvidia_smi": {},
            "clocks": {"reason": "nvidia-ml-py is not installed", "lock": "nvidia-smi -lgc MHZ"},
        },
        "rates": gpu_steps.take_rates,
        "tests": raising(ParityError("1 of 9 gpu tests failed: <b>")),
        "engines tensorrt": lambda run: {
            "backbone": {
                "build_seconds": 3.0,
                "plan_bytes": 2**20,
                "parity_passed": True,
                "parity_checks": 4,
                "j_and_f": 1.0,
            }
        },
        "engines tensorrt-rtx": raising(ImportError("no", name="tensorrt_rtx")),
        "kernels": lambda run: {
            "fp16": {
                "floor_milliseconds": 0.1,
                "rounds": 3,
                "timings": [
                    {
                        "name": "ours",
                        "milliseconds": spread_of([0.2, 0.2, 0.21]),
                        "flushed_milliseconds": spread_of([0.3, 0.33, 0.4]),
                        "gigabytes_per_second": 5.0,
                        "difference": 3e-4,
                    }
                ],
                "missing": {"Deformable-DETR's operator": "it is not installed"},
                "clocks": CLOCKS[0],
            }
        },
        "tensorrt": lambda run: figures(passed=False),
        "onnxruntime cuda": lambda run: figures(),
        REFERENCE: lambda run: figures(),
        "torch.compile": raising(BackendError("torch sees no GPU")),
        "streams": streams,
        "graphs": graphs,
        "video": video,
    }
    monkeypatch.setattr(gpu_steps, "STEPS", steps)
    said: list[str] = []
    record = gpu.run_benchmark(request_, json.loads(planned), said.append)
    assert "torch.compile: not run (torch sees no GPU), 0 s" in said
    return record


def test_a_whole_run_goes_through_whatever_fails(finished: Record, request_: Request) -> None:
    assert request_.out is not None
    assert json.loads((request_.out / "gpu.json").read_text(encoding="utf-8")) == finished
    statuses = [step["status"] for step in finished["steps"].values()]
    assert (statuses.count("done"), statuses.count("failed"), statuses.count("not run")) == (
        10,
        1,
        2,
    )
    assert finished["passed"] is False
    rates = finished["floors"][0]
    assert (rates["card"], rates["rates"]) == ("this card, measured", RATES)


def test_a_ratio_needs_equal_masks(finished: Record) -> None:
    rows = finished["comparison"]["contenders"]
    assert rows["tensorrt"] == {"j_and_f": 1.0, "ratio": 4.0}
    assert rows["onnxruntime cuda"]["ratio"] is None
    assert rows["onnxruntime cuda"]["j_and_f"] < 0.999


def test_the_page_shows_every_figure_beside_its_roofline(finished: Record) -> None:
    page = render(finished)
    frame = finished["floors"][0]["frame_milliseconds"]
    assert f"Roofline of the graphs: {frame:.3f} ms" in page
    assert f"</i></span> {frame / 5.0:.1%}" in page
    backbone = finished["floors"][0]["graphs"]["backbone"]["milliseconds"]
    assert f"<td>{backbone:.4f}</td><td>5.000 (4.0%, {5 / backbone:.1f}x)</td>" in page
    assert "4.00x" in page
    assert "masks differ" in page
    assert "torch sees no GPU" in page
    assert "1 failed" in page
    assert "a &lt;command&gt;" in page
    assert "gpu tests failed: &lt;b&gt;" in page
    opened, closed = re.findall(r"<(\w+)[ >]", page), re.findall(r"</(\w+)>", page)
    for tag in set(closed):
        assert opened.count(tag) == closed.count(tag), tag


def test_the_page_shows_spreads_clocks_and_what_is_missing(finished: Record) -> None:
    page = render(finished)
    assert page.count("in turn, in 3 rounds") == 4
    assert "<td>4.0%</td>" in page
    assert "<td><span class=bad>30.0%</span></td>" in page, "a large spread is marked"
    # The fp16 kernel: warm and flushed, each with its spread.
    assert "<td>0.2000</td><td>5.0%</td><td>0.3300</td><td><span class=bad>30.3%</span>" in page
    assert "<td>3.0e-04</td>" in page
    moved = "<span class=bad>1500 to 1800 MHz</span>, up to 72 W, power limit"
    assert page.count(moved) == 4, "two streams, a job, a kernel"
    assert "<td class=text>nvidia-ml-py is not installed</td>" in page
    assert "The clock was not read: nvidia-ml-py is not installed" in page
    assert "<code>nvidia-smi -lgc MHZ</code>" in page
    for reason in ("an &lt;illegal&gt; address", "the disk is full", "it is not installed"):
        assert f"<td class=text>{reason}</td>" in page or f": {reason}</td>" in page
    for stage in ("decode", "resize and upload", "masks down", "encode"):
        assert f"<td class=text>{stage}</td>" in page
    assert "clip.mp4, 64 frames" in page


def test_a_clock_that_stays_is_not_marked() -> None:
    still = {**CLOCKS[0], "sm_mhz": {"min": 1500, "p50": 1500, "max": 1500}, "throttled": []}
    assert parts.clocks([still, still]) == "1500 MHz, up to 72 W"
    assert parts.clocks([]) == "not read"


def test_without_a_back_end_nothing_is_measured_in_turn(request_: Request, tmp_path: Path) -> None:
    for name in ("streams", "graphs", "video"):
        outcome = gpu_steps.guarded(STEPS[name], Run(request_, tmp_path, {}))
        assert (outcome["status"], outcome["reason"]) == ("not run", "no back end could be opened")


def test_the_machine_says_why_no_clock_is_read(
    monkeypatch: pytest.MonkeyPatch, request_: Request, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_steps, "find_gpu", lambda: Gpu("A card", "8.9"))
    monkeypatch.setattr(gpu_steps, "gpu_uuid", lambda: None)
    run = Run(request_, tmp_path, {})
    found = gpu_steps.check_machine(run)
    assert "does not tell the GPU's UUID" in found["clocks"]["reason"]
    assert "-lgc" in found["clocks"]["lock"]
    assert run.read is None
    reading = Reading(1500, None, None, frozenset(("power limit",)))
    monkeypatch.setattr(gpu_steps, "clock_reader", lambda uuid: lambda: reading)
    clocks = gpu_steps.check_machine(run)["clocks"]
    assert (clocks["sm_mhz"], clocks["throttled"]) == (1500, ["power limit"])
    assert run.read is not None
    json.dumps(clocks)


def test_failed_tests_are_named(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    good = '<testcase classname="a" name="one"/>'
    skipped = '<testcase classname="a" name="two"><skipped/></testcase>'
    bad = '<testcase classname="a" name="three"><failure/></testcase>'
    report.write_text(f"<testsuites><testsuite>{good}{skipped}</testsuite></testsuites>")
    assert read_junit(report) == {"passed": 1, "skipped": 1}
    report.write_text(f"<testsuites><testsuite>{good}{bad}</testsuite></testsuites>")
    with pytest.raises(ParityError, match="1 of 2 gpu tests failed: a::three"):
        read_junit(report)


def test_j_and_f_of_equal_and_of_empty_masks() -> None:
    some = (np.packbits(np.eye(16, dtype=np.bool_)[None], axis=-1),)
    none = (np.zeros_like(some[0]),)
    assert masks_j_and_f(some, some) == 1.0
    assert masks_j_and_f(some, none) == 0.0
