"""Run the steps of the GPU benchmark; what a step lacks is recorded, and the next step runs.

NOT RUN: the development machine has no GPU. The tests run the guards and the record.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rvos_deploy.benchmarks.gpu_backends import (
    Measured,
    Setup,
    cuda_setup,
    masks_j_and_f,
    measure_backend,
)
from rvos_deploy.benchmarks.gpu_plan import Request, count_graphs, roofline_on
from rvos_deploy.benchmarks.gpu_rates import (
    as_rates,
    ask_nvidia_smi,
    measure_rates,
    require_torch_cuda,
)
from rvos_deploy.benchmarks.latency import MINIMUM_J_AND_F
from rvos_deploy.benchmarks.roofline import SAMPLING, GraphCost, deformable_macs, roofline
from rvos_deploy.engines.layer_types import HALF
from rvos_deploy.engines.profiles import bundle_axes, default_profile
from rvos_deploy.errors import BackendError, ParityError, RvosError
from rvos_deploy.runtime.backends.gpu import find_gpu, gpu_uuid
from rvos_deploy.runtime.segmenter import Segmenter, load

MEASURED = "this card, measured"
REFERENCE = "pytorch eager"
TESTS_SECONDS = 3600
GPU_TESTS = (
    "tests/backends/test_backends_cuda_ops.py",
    "tests/backends/test_backends_device_names.py",
    "tests/backends/test_backends_on_device.py",
    "tests/engines/test_engines_plugin_gpu.py",
)
"""The files with tests that need a GPU. Other tests need packages that are no use here."""


@dataclass
class Run:
    """Hold the results that steps pass to later steps.

    Args:
        request: what to measure.
        folder: for temporary files.
        record: the growing result.
        setup: of the back ends' measurements, once it was made.
        measured: by back end, for the comparison of masks.
    """

    request: Request
    folder: Path
    record: dict[str, Any]
    setup: Setup | None = None
    measured: dict[str, Measured] = field(default_factory=dict)


Work = Callable[[Run], dict[str, Any]]


def guarded(work: Work, run: Run) -> dict[str, Any]:
    """Run a step, and return its result with its status: done, failed, or not run for lack of
    something.
    """
    started = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"status": "done", "result": work(run)}
    except ParityError as error:
        outcome = {"status": "failed", "reason": str(error)}
    except ImportError as error:
        outcome = {"status": "not run", "reason": f"{error.name or error} is not installed"}
    except RvosError as error:
        outcome = {"status": "not run", "reason": str(error)}
    except Exception as error:  # an error of any library must not stop the other steps
        first = (str(error).strip() or "no message").splitlines()[0]
        outcome = {"status": "failed", "reason": f"{type(error).__name__}: {first}"}
    return {**outcome, "seconds": round(time.perf_counter() - started, 3)}


def check_machine(run: Run) -> dict[str, Any]:
    """Return the GPU, its state, and its other users."""
    gpu = find_gpu()
    assert gpu is not None
    try:
        state = ask_nvidia_smi(gpu_uuid())
    except BackendError as error:
        state = {"reason": str(error)}
    return {**asdict(gpu), "nvidia_smi": state}


def take_rates(run: Run) -> dict[str, Any]:
    """Measure the GPU's rates, and put its rooflines first in the record. NOT RUN."""
    measured = measure_rates()
    bundle = run.request.bundle
    costs = count_graphs(bundle, run.record["axes"])
    run.record["floors"].insert(
        0, roofline_on(MEASURED, "this command", as_rates(measured), costs, bundle.precision)
    )
    return dict(measured)


def run_gpu_tests(run: Run) -> dict[str, Any]:
    """Run the tests that need a GPU in a process of its own. NOT RUN."""
    import rvos_deploy

    root = Path(rvos_deploy.__file__).parents[1]
    if not (root / "tests").is_dir():
        raise BackendError(f"{root} holds no tests: run the command in a clone of the repository")
    report = run.folder / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}"]
    command += GPU_TESTS
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=TESTS_SECONDS, check=False
    )
    if not report.is_file():
        raise BackendError(f"pytest wrote no report: {_last_line(done.stdout + done.stderr)}")
    return read_junit(report)


def read_junit(report: Path) -> dict[str, Any]:
    """Count the tests of a JUnit report.

    Raises:
        ParityError: a test failed; names it.
    """
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    if failed:
        raise ParityError(f"{len(failed)} of {len(cases)} gpu tests failed: {'; '.join(failed)}")
    return {"passed": len(cases) - skipped, "skipped": skipped}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def build_target(target: str) -> Work:
    """Return a step that builds every graph for one TensorRT into the bundle, with parity checks.
    NOT RUN.
    """

    def build(run: Run) -> dict[str, Any]:
        from rvos_deploy.engines.build import build_engines
        from rvos_deploy.engines.settings import BuildSettings

        gpu = find_gpu()
        assert gpu is not None
        # By default TensorRT-RTX builds for all of its architectures.
        only = (gpu.compute_capability,) if target == "tensorrt-rtx" else ()
        settings = BuildSettings(target, (engine_profile(run.request),), compute_capabilities=only)
        engines = build_engines(run.request.bundle, settings)
        return {
            engine.graph: {
                "build_seconds": engine.build_seconds,
                "plan_bytes": engine.plan_bytes,
                "plugin_layers": engine.plugin_layers,
                "layers": dict(engine.layers),
                "parity_passed": engine.parity_passed,
                "parity_checks": len(engine.parity or ()),
                "parity_reason": engine.parity_reason,
                "j_and_f": _masks_j_and_f(engine.parity or ()),
            }
            for engine in engines
        }

    return build


def engine_profile(request: Request) -> str:
    """Return a profile that is best for the requested expressions and covers ``verify``."""
    cases, axes = request.bundle.network.probe_cases(), bundle_axes(request.bundle)
    parts = []
    for axis, (low, best, high) in default_profile(request.bundle).items():
        wanted = axes[axis].nearest(request.expressions) if axis == "E" else best
        sizes = [axes[axis].nearest(case[axis]) for case in cases if axis in case]
        parts.append(f"{axis}={min(low, *sizes)}:{wanted}:{max(high, *sizes)}")
    return ",".join(parts)


def _masks_j_and_f(checks: tuple[Mapping[str, Any], ...]) -> float | None:
    return next((check["j_and_f"] for check in checks if "j_and_f" in check), None)


def time_kernels(run: Run) -> dict[str, Any]:
    """Time deformable attention by every available kernel, in two types, with its roofline. NOT
    RUN.
    """
    require_torch_cuda()
    from rvos_deploy.engines.plugins.ms_deform_attn import benchmark as kernels
    from rvos_deploy.engines.plugins.ms_deform_attn.spec import DType

    measured = run.record["steps"].get("rates", {}).get("result")
    pixels = sum(height * width for height, width in kernels.LEVELS)
    offsets = (1, pixels, kernels.HEADS, len(kernels.LEVELS), kernels.POINTS, 2)
    macs = deformable_macs(offsets, kernels.HEAD_WIDTH)
    rows: dict[str, Any] = {}
    kinds: tuple[DType, ...] = ("fp32", "fp16")
    for kind in kinds:
        timings = kernels.benchmark(kind)
        moved = round(timings[0].milliseconds * timings[0].gigabytes_per_second * 1e6)
        cost = GraphCost({SAMPLING: macs}, {}, 0, moved, 0)
        rows[kind] = {
            "macs": macs,
            "bytes": moved,
            "floor_milliseconds": (
                roofline(cost, as_rates(measured), tf32=False).seconds * 1e3 if measured else None
            ),
            "timings": [asdict(timing) for timing in timings],
        }
    return rows


def backend_step(name: str, make: Callable[[Request], Segmenter]) -> Work:
    """Return a step that measures one back end. NOT RUN."""

    def work(run: Run) -> dict[str, Any]:
        torch = require_torch_cuda()
        run.setup = run.setup or cuda_setup(run.request, run.folder)
        # Engines use TF32 for the float32 islands of half-precision bundles, so PyTorch does too.
        half = run.request.bundle.precision in HALF
        torch.set_float32_matmul_precision("high" if half else "highest")
        torch.backends.cudnn.allow_tf32 = half
        run.measured[name] = measure_backend(run.setup, name, lambda: make(run.request))
        return run.measured[name].figures

    return work


def _tensorrt(request: Request) -> Segmenter:
    return load(request.bundle.path, backend="tensorrt", device="cuda")


def _tensorrt_rtx(request: Request) -> Segmenter:
    return load(request.bundle.path, backend="tensorrt-rtx", device="cuda")


def _onnxruntime(request: Request) -> Segmenter:
    return load(request.bundle.path, backend="onnxruntime", device="cuda")


def _pytorch(request: Request, *, compiled: bool) -> Segmenter:
    from rvos_deploy.benchmarks.gpu_torch import CudaTorchBackend

    backend = CudaTorchBackend(request.bundle, request.checkpoint, compiled=compiled)
    return Segmenter(request.bundle, backend)


BACKENDS_UNDER_TEST: Mapping[str, Callable[[Request], Segmenter]] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
    "onnxruntime cuda": _onnxruntime,
    REFERENCE: lambda request: _pytorch(request, compiled=False),
    "torch.compile": lambda request: _pytorch(request, compiled=True),
}

STEPS: Mapping[str, Work] = {
    "machine": check_machine,
    "rates": take_rates,
    "tests": run_gpu_tests,
    "engines tensorrt": build_target("tensorrt"),
    "engines tensorrt-rtx": build_target("tensorrt-rtx"),
    "kernels": time_kernels,
    **{name: backend_step(name, make) for name, make in BACKENDS_UNDER_TEST.items()},
}
"""Steps by the names in ``gpu_plan.PLAN``, in the same order."""


def compare(run: Run) -> dict[str, Any]:
    """Compare every back end's speed with eager PyTorch's, where their masks are equal enough."""
    reference = run.measured.get(REFERENCE)
    if reference is None:
        return {"reference": REFERENCE, "reason": f"{REFERENCE} was not run"}
    slow = _p50(reference)
    rows: dict[str, Any] = {}
    for name, measured in run.measured.items():
        if name == REFERENCE:
            continue
        same = masks_j_and_f(measured.masks, reference.masks)
        comparable = same >= MINIMUM_J_AND_F
        rows[name] = {"j_and_f": same, "ratio": slow / _p50(measured) if comparable else None}
    return {"reference": REFERENCE, "needed_j_and_f": MINIMUM_J_AND_F, "contenders": rows}


def passed(record: Mapping[str, Any]) -> bool:
    """Tell whether no step and no parity check failed; steps that were not run do not count."""
    steps = record["steps"].values()
    parities = (
        step["result"]["parity"].get("passed")
        for step in steps
        if isinstance(step.get("result"), dict) and "parity" in step["result"]
    )
    return all(step["status"] != "failed" for step in steps) and all(
        result is not False for result in parities
    )


def _p50(measured: Measured) -> float:
    return float(measured.figures["stream"]["milliseconds"]["p50"])
