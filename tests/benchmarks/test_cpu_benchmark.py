"""The CPU benchmark: real streams in turn, targets, resuming, and the report."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")

from rvos_deploy.benchmarks import cpu
from rvos_deploy.benchmarks.cpu_contenders import CONTENDERS, choose_contenders
from rvos_deploy.benchmarks.cpu_length import measure_length
from rvos_deploy.benchmarks.cpu_models import MODELS, Bundles
from rvos_deploy.benchmarks.cpu_processes import first_mask, peak_memory
from rvos_deploy.benchmarks.cpu_record import (
    HTML_FILE,
    JSON_FILE,
    SCHEMA,
    judge,
    named_paths,
    open_record,
    read_accuracy,
    run_sections,
)
from rvos_deploy.benchmarks.cpu_report import render
from rvos_deploy.benchmarks.cpu_sections import (
    FULL,
    GROUPS,
    QUICK,
    Section,
    Setup,
    plan,
    points,
    sweep_points,
)
from rvos_deploy.benchmarks.cpu_streams import DecodedClip, Point, measure_point
from rvos_deploy.benchmarks.other_work import other_work
from rvos_deploy.benchmarks.timing import Clip, decode_frames, render_clip
from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.errors import BackendError, InputError

STAGES = {"text", "resize", "backbone", "frame_decoder", "alignment", "memory", "video_decoder",
          "mask_head", "post-processing"}  # fmt: skip
PERCENTILES = {"p50", "p90", "p95", "p99"}
SPEEDUPS = {"pytorch": 1, "pytorch-bf16": 1.2, "onnxruntime": 2, "openvino": 8}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return render_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 8)


def decoded(clip: Clip) -> DecodedClip:
    return DecodedClip(decode_frames(clip.path, 8)[0], clip.texts)


def summary(milliseconds: float) -> dict[str, Any]:
    times = dict.fromkeys(sorted(PERCENTILES), milliseconds)
    return {"count": 3, "frames_per_second": 1e3 / milliseconds, "milliseconds": times}


def stream(point: Point, speedups: dict[str, float] = SPEEDUPS) -> dict[str, Any]:
    """Fabricate a stream in which each contender is so many times as fast as PyTorch."""
    contenders = {}
    for name, speedup in speedups.items():
        # The decoder's time grows by half for each expression.
        decoder = 50 * (1 + point.expressions) / speedup
        contenders[name] = {
            "j_and_f": 1.0 if CONTENDERS[name].arithmetic == "fp32" else 0.99,
            "compared_with": "pytorch",
            "end_to_end": summary(decoder + 20 / speedup),
            "cpu_milliseconds": 30.0,
            "stages": {
                "text": summary(5),
                "backbone": summary(20 / speedup),
                "frame_decoder": summary(decoder),
            },
        }
    return {
        "model": point.model,
        "size": list(point.size or (128, 224)),
        "expressions": point.expressions,
        "memory": point.memory or 64,
        "frames": 3,
        "main": True,
        "missing": {"openvino-int8": "not here"},
        "contenders": contenders,
    }


def fabricated() -> dict[str, Any]:
    """Return a whole record in which every target is met."""
    results: dict[str, Any] = {
        f"stream: {p.name}": stream(p, SPEEDUPS | {"openvino-int8": 10}) for p in points(QUICK)
    }
    results |= {
        f"stream: {p.name}": {**stream(p, SPEEDUPS | {"openvino-int8": 10}), "main": False}
        for p in sweep_points(QUICK)
    }
    for result in results.values():
        result["contenders"]["openvino-int8"]["j_and_f"] = 0.996
    steps = {"interpreter": 0.1, "import": 0.1, "load": 0.2, "first frame": 0.1}
    results |= {
        "first mask": {"contenders": {"auto": {"seconds": 0.5, "steps": steps}}},
        "peak memory": {"contenders": {"pytorch": {"peak_bytes": 10**9}}},
        "operator": {
            "shapes": {
                "tiny": {
                    "floor: read the rows": summary(1),
                    "kernel, AVX-512": summary(2),
                    "function body, ONNX Runtime": summary(20),
                    "grid_sample, PyTorch": summary(30),
                }
            }
        },
        "job": {
            "frames": 9,
            "decode": summary(1),
            "write": summary(2),
            "contenders": {
                "openvino": {
                    "frames_per_second": 95.0,
                    "inference_frames_per_second": 100.0,
                    "beyond_inference": 0.05,
                    "cpu_milliseconds": 20.0,
                }
            },
        },
        "length": {
            "contender": "openvino",
            "frames": 40,
            "curve": [
                {"frames": n, "milliseconds": 9.0, "resident_bytes": 2**28} for n in (20, 40)
            ],
        },
    }
    record = {
        "schema": SCHEMA,
        "command": "python -m rvos_deploy.benchmarks.cpu --out <DIR>",
        "versions": {"python": "3.11"},
        "machine": {"processor": "a & b", "system": "Linux"},
        "request": {"quick": True},
        "accuracy": {},
        "threads": 2,
        "contenders": {
            name: {"title": one.title, "missing": "not here" if one.own_bundle else None}
            for name, one in CONTENDERS.items()
        },
        "sections": {
            name: {"status": "done", "seconds": 1.0, "result": result}
            for name, result in results.items()
        },
    }
    judge(record)
    return record


def target(record: dict[str, Any], what: str, against: str) -> dict[str, Any]:
    judge(record)
    (row,) = (
        r for r in record["targets"] if r["what"].startswith(what) and r["against"] == against
    )
    return row


def test_contenders_run_in_turn_and_agree(clip: Clip) -> None:
    pytest.importorskip("torch")
    bundle = open_bundle("tiny")
    point = Point("tiny", expressions=2, frames=5)
    said: list[str] = []
    names = ("pytorch", "pytorch-bf16", "onnxruntime")
    found = measure_point(point, dict.fromkeys(names, bundle), decoded(clip), 1, said.append)
    assert (found["size"], found["expressions"], found["memory"]) == ([128, 224], 2, 64)
    assert said[-1].endswith("run")
    for name in names:
        one = found["contenders"][name]
        assert set(one["stages"]) == STAGES
        assert set(one["end_to_end"]["milliseconds"]) == PERCENTILES
        for stage in STAGES - {"text"}:
            assert one["stages"][stage]["count"] == 5, stage
        assert one["end_to_end"]["count"] == 5
        assert one["cpu_milliseconds"] > 0
        assert one["mask_area"] > 0  # empty masks would agree with anything
    assert found["contenders"]["pytorch"]["j_and_f"] == 1
    assert found["contenders"]["onnxruntime"]["j_and_f"] >= 0.999
    assert found["contenders"]["pytorch-bf16"]["j_and_f"] > 0.5


def test_other_masks_have_no_speed(clip: Clip, tiny_bundle: Path) -> None:
    point = Point("tiny", (64, 96), frames=2)
    # The packaged network, and one of random weights: two networks, so other masks.
    bundles = {"onnxruntime": open_bundle("tiny"), "openvino": open_bundle(tiny_bundle)}
    pytest.importorskip("openvino")
    found = measure_point(point, bundles, decoded(clip), 1, lambda _: None)
    refused = found["contenders"]["openvino"]
    assert refused["j_and_f"] < 0.999
    assert "needed: 0.999" in refused["refused"]
    assert "end_to_end" not in refused
    record = fabricated()
    name = "stream: tiny, own size, 1 expressions"
    record["sections"][name]["result"] = {**found, "main": True, "missing": {}}
    judge(record)
    assert not record["passed"]
    assert any("openvino" in line for line in record["refused"])
    assert "its speed means nothing" in render(record)


@pytest.mark.parametrize(("share", "code"), [(1.0, 0), (0.1, 1)], ids=["met", "one missed"])
def test_exit_code(
    share: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    record = fabricated()
    request = cpu.Request((), (), Bundles(tmp_path), {}, 1, QUICK, quick=True)
    record["request"] = request.as_dict()
    assert set(record["sections"]) == set(plan(QUICK))  # so nothing is measured again
    one = record["sections"]["stream: base, 352x640, 1 expressions"]["result"]["contenders"]
    one["pytorch"]["end_to_end"]["milliseconds"]["p50"] *= share
    (tmp_path / JSON_FILE).write_text(json.dumps(record), encoding="utf-8")
    found = 0
    try:
        cpu.main(tmp_path, cache=tmp_path, threads=1, quick=True)
    except typer.Exit as ended:
        found = ended.exit_code
    printed = capsys.readouterr().out
    assert found == code, printed
    assert ("missed: base, 352x640" in printed) == bool(code)
    if code:  # the profile explains the miss
        assert re.search(r"frame decoder: \d.* ms \(\d+% of the frame\), PyTorch", printed)


def test_every_target_is_met_and_missed() -> None:
    record = fabricated()
    assert [row["status"] for row in record["targets"]] == ["met"] * len(record["targets"])
    assert record["passed"]
    slow = copy.deepcopy(record)
    for section in slow["sections"].values():
        result = section["result"]
        for name, one in result.get("contenders", {}).items():
            if "stages" in one and "end_to_end" in one and name == "pytorch":
                for part in (one["end_to_end"], *one["stages"].values()):
                    part["milliseconds"]["p50"] /= 100
        for times in result.get("shapes", {}).values():
            times["kernel, AVX-512"] = summary(100)
    eight = slow["sections"]["stream: tiny, own size, 8 expressions"]["result"]["contenders"]
    for one in eight.values():
        one["stages"]["frame_decoder"]["milliseconds"]["p50"] *= 10
    slow["sections"]["first mask"]["result"]["contenders"]["auto"]["seconds"] = 0.61
    slow["sections"]["job"]["result"]["contenders"]["openvino"]["beyond_inference"] = 0.11
    judge(slow)
    assert [row["status"] for row in slow["targets"]] == ["missed"] * len(slow["targets"])
    assert all(row["profile"] for row in slow["targets"])
    assert not slow["passed"]


def test_what_was_not_measured_is_neither() -> None:
    record = fabricated() | {"sections": {}}
    judge(record)
    assert {row["status"] for row in record["targets"]} == {"not measured"}
    assert record["passed"]


def test_a_lower_precision_counts_only_when_its_loss_is_known() -> None:
    record = fabricated()
    large = record["sections"]["stream: large, 448x800, 1 expressions"]["result"]["contenders"]
    del large["openvino-int8"]
    large["openvino-bf16"] = copy.deepcopy(large["openvino"])
    large["openvino-bf16"]["end_to_end"]["milliseconds"]["p50"] /= 2
    large["openvino-bf16"]["j_and_f"] = 0.99
    what = "large, 448x800, 1 expression, fp32 or bf16"
    assert target(record, what, "PyTorch eager")["by"] == "OpenVINO"
    for accuracy, by in (
        ({"lost": 0.001, "expressions": 499}, "OpenVINO"),
        ({"lost": 0.003, "expressions": 500}, "OpenVINO"),
        ({"lost": 0.002, "expressions": 500}, "OpenVINO, bf16"),
    ):
        record["accuracy"] = {"openvino-bf16": accuracy}
        assert target(record, what, "PyTorch eager")["by"] == by, accuracy
    record["accuracy"] = {}
    large["openvino-bf16"]["j_and_f"] = 0.998  # masks that agree prove a small loss
    assert target(record, what, "PyTorch eager")["by"] == "OpenVINO, bf16"
    assert target(record, "large, 448x800, 1 expression, int8", "PyTorch eager")["status"] == (
        "not measured"
    )


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Bundles(tmp_path), ("onnxruntime",), 1, QUICK, tmp_path, lambda _: None)


def test_an_interrupted_run_continues(tmp_path: Path, setup: Setup) -> None:
    ran: list[str] = []

    def work(name: str, error: type[BaseException] | None = None) -> Callable[[Setup], dict]:
        def run(_: Setup) -> dict[str, Any]:
            ran.append(name)
            if error is not None:
                raise error
            return {"contenders": {}, "value": name}

        return run

    out, request = tmp_path / "out", {"quick": True}
    out.mkdir()
    record = open_record(out, request, overwrite=False)
    record |= {"threads": 1, "contenders": {}}
    sections = {
        "one": Section("tiny", work("one")),
        "two": Section("tiny", work("two", KeyboardInterrupt)),
        "three": Section("tiny", work("three")),
    }
    with pytest.raises(KeyboardInterrupt):
        run_sections(out, record, sections, setup)
    kept = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))
    assert list(kept["sections"]) == ["one"]
    again = open_record(out, request, overwrite=False)
    sections["two"] = Section("tiny", work("two", BackendError))
    run_sections(out, again, sections, setup)
    assert ran == ["one", "two", "two", "three"]
    assert again["sections"]["two"]["status"] == "failed"
    assert not again["passed"]
    # What failed is measured again, and nothing else.
    sections["two"] = Section("tiny", work("two"))
    last = open_record(out, request, overwrite=False)
    run_sections(out, last, sections, setup)
    assert ran[4:] == ["two"]
    assert last["passed"]
    assert sorted(file.name for file in out.iterdir()) == [HTML_FILE, JSON_FILE]


def test_results_of_other_options_are_kept(tmp_path: Path) -> None:
    (tmp_path / JSON_FILE).write_text(json.dumps({"schema": SCHEMA, "request": {"quick": 1}}))
    with pytest.raises(InputError, match=r"other options .* --overwrite"):
        open_record(tmp_path, {"quick": 2}, overwrite=False)
    assert open_record(tmp_path, {"quick": 2}, overwrite=True)["sections"] == {}
    (tmp_path / JSON_FILE).write_text("[]")
    with pytest.raises(InputError):
        open_record(tmp_path, {}, overwrite=False)


class Page(HTMLParser):
    """Collect the elements of a page, and check that they are nested."""

    EMPTY = ("meta", "br", "col")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given[key] or "" for key in ("src", "href", "xlink:href") if key in given]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_whole_and_stands_alone() -> None:
    record = fabricated()
    record["sections"]["job"] = {"status": "failed", "seconds": 1, "reason": "no <b>disk</b>"}
    judge(record)
    html = render(record)
    page = Page(html)
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert len(page.ids) == len(set(page.ids))
    # Plots refer to their own parts only.
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(page.ids)
    assert not re.findall(r"url\((?!#)|@import", html)
    assert page.tags.count("svg") >= 6
    assert "no &lt;b&gt;disk" in html
    assert "a &amp; b" in html
    assert "A quick run" in html
    assert "#010203" not in html  # plots take the page's colours


def test_the_plan_measures_what_the_targets_need() -> None:
    assert {f"stream: {point.name}" for point in points(FULL)} <= set(plan(FULL))
    assert {section.group for section in plan(FULL).values()} == set(GROUPS)
    sizes = {point.model: point.size for point in points(FULL)}
    assert sizes == {name: None if model.packaged else model.size for name, model in MODELS.items()}


def test_a_job_by_the_command(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "rvos_deploy.benchmarks.cpu", "--out", str(tmp_path / "out")]
    chosen = ["--quick", "--only", "job", "--contender", "onnxruntime", "--threads", "1"]
    result = subprocess.run([*module, *chosen], capture_output=True, text=True, check=False)
    record = json.loads((tmp_path / "out" / JSON_FILE).read_text(encoding="utf-8"))
    assert record["sections"]["job"]["status"] == "done", record["sections"]["job"]
    job = record["sections"]["job"]["result"]
    assert set(job["contenders"]) == {"onnxruntime"}
    one = job["contenders"]["onnxruntime"]
    assert one["inference_frames_per_second"] > 0
    assert one["cpu_milliseconds"] > 0
    assert job["write"]["milliseconds"]["p50"] > 0
    (row,) = (row for row in record["targets"] if row["status"] != "not measured")
    assert row["what"].startswith("run of tiny")
    assert result.returncode == (0 if row["status"] == "met" else 1)
    assert (tmp_path / "out" / HTML_FILE).is_file()


def test_other_work_is_noticed() -> None:
    loop = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(loop, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        with other_work() as found:
            time.sleep(0.6)
        busy.kill()
    if not Path("/proc/stat").is_file():
        assert found["other_cores"] is None
        return
    assert found["other_cores"] is not None
    assert found["other_cores"] > 0.1
    record = fabricated()
    assert "Other processes" not in render(record)
    record["sections"]["job"]["other_cores"] = 1.5
    assert "Other processes kept up to 1.5 cores busy" in render(record)


def test_fresh_processes(clip: Clip) -> None:
    found = first_mask(clip.path, "tiny", "onnxruntime", 1)
    assert list(found["steps"]) == ["interpreter", "import", "load", "first frame"]
    assert sum(found["steps"].values()) == pytest.approx(found["seconds"])
    assert min(found["steps"].values()) > 0
    # This process is larger, and must not count.
    ballast = bytearray(b"x") * (1 << 30)
    peak = peak_memory("onnxruntime", open_bundle("tiny").path, clip.path, 1)["peak_bytes"]
    assert 50 << 20 < peak < len(ballast)
    with pytest.raises(BackendError, match=r"process of the benchmark failed: .*no such folder"):
        first_mask(clip.path, "no-bundle", "onnxruntime", 1)


def test_a_long_stream(clip: Clip) -> None:
    backend = CONTENDERS["onnxruntime"].make(open_bundle("tiny"), 1)
    found = measure_length(open_bundle("tiny"), backend, decoded(clip), 21)
    assert [point["frames"] for point in found["curve"]] == list(range(1, 22))
    assert all(p["milliseconds"] > 0 and p["resident_bytes"] > 0 for p in found["curve"])


def test_wrong_options() -> None:
    with pytest.raises(InputError, match="unknown contender 'tpu'; choose among pytorch"):
        choose_contenders(("tpu",))
    with pytest.raises(InputError, match=r"--bundle 'huge=x' is not NAME=PATH with a name of tiny"):
        named_paths("--bundle", ["huge=x"], MODELS)
    assert named_paths("--bundle", ["tiny=a=b"], MODELS) == {"tiny": Path("a=b")}
    with pytest.raises(InputError, match=r"bundle_parity"):
        read_accuracy({"openvino-bf16": Path("/dev/null")})


def test_a_missing_bundle_without_its_weights(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rvos_deploy.benchmarks.cpu_models.CHECKPOINTS", tmp_path)
    bundles = Bundles(tmp_path)
    found, missing = bundles.open_for(
        ("onnxruntime", "onnxruntime-int8"), "tiny", "clip.mp4", lambda _: None
    )
    assert set(found) == {"onnxruntime"}
    assert set(missing) == {"onnxruntime-int8"}
