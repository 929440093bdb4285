"""Run the steps of the GPU benchmark; what a step lacks is recorded, and the next step runs.

NOT RUN: the development machine has no GPU. The tests run the guards and the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rvos_deploy.benchmarks.gpu_backends import Setup, cuda_setup, open_backend
from rvos_deploy.benchmarks.gpu_clocks import LOCK_CLOCKS, Read, clock_reader
from rvos_deploy.benchmarks.gpu_plan import Request, count_graphs, roofline_on
from rvos_deploy.benchmarks.gpu_rates import (
    as_rates,
    ask_nvidia_smi,
    measure_rates,
    require_torch_cuda,
)
from rvos_deploy.benchmarks.gpu_test_run import run_gpu_tests
from rvos_deploy.benchmarks.gpu_turns import (
    Masks,
    Opened,
    masks_j_and_f,
    time_graphs,
    time_jobs,
    time_streams,
)
from rvos_deploy.benchmarks.latency import MINIMUM_J_AND_F
from rvos_deploy.benchmarks.roofline import SAMPLING, GraphCost, deformable_macs, roofline
from rvos_deploy.benchmarks.rounds import why
from rvos_deploy.engines.layer_types import HALF
from rvos_deploy.engines.profiles import bundle_axes, default_profile
from rvos_deploy.errors import BackendError, ParityError, RvosError
from rvos_deploy.runtime.backends.gpu import find_gpu, gpu_uuid
from rvos_deploy.runtime.segmenter import Segmenter, load

MEASURED = "this card, measured"
REFERENCE = "pytorch eager"


@dataclass
class Run:
    """Hold the results that steps pass to later steps.

    Args:
        request: what to measure.
        folder: for temporary files.
        record: the growing result.
        read: reads the GPU's clock; None where NVML is missing.
        setup: of the back ends' measurements, once it was made.
        opened: the back ends, which stay open until :meth:`close`.
        masks: of some frames by back end, for the comparison.
    """

    request: Request
    folder: Path
    record: dict[str, Any]
    read: Read | None = None
    setup: Setup | None = None
    opened: dict[str, Segmenter] = field(default_factory=dict)
    masks: dict[str, Masks] = field(default_factory=dict)

    def close(self) -> None:
        """Close all back ends, also where closing one of them fails."""
        with ExitStack() as stack:
            while self.opened:
                stack.callback(self.opened.popitem()[1].close)


Work = Callable[[Run], dict[str, Any]]


def guarded(work: Work, run: Run) -> dict[str, Any]:
    """Run a step, and return its result with its status: done, failed, or not run for lack of
    something.
    """
    started = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"status": "done", "result": work(run)}
    except Exception as error:  # an error of any library must not stop the other steps
        lacks = isinstance(error, (ImportError, RvosError)) and not isinstance(error, ParityError)
        outcome = {"status": "not run" if lacks else "failed", "reason": why(error)}
    return {**outcome, "seconds": round(time.perf_counter() - started, 3)}


def check_machine(run: Run) -> dict[str, Any]:
    """Return the GPU, its state, and its other users."""
    gpu = find_gpu()
    assert gpu is not None
    try:
        state = ask_nvidia_smi(gpu_uuid())
    except BackendError as error:
        state = {"reason": str(error)}
    return {**asdict(gpu), "nvidia_smi": state, "clocks": _open_clocks(run)}


def _open_clocks(run: Run) -> dict[str, Any]:
    """Open NVML for the steps that follow, and return a first reading, or why there is none."""
    try:
        run.read = clock_reader(gpu_uuid())
        reading = run.read()
    except BackendError as error:
        run.read = None
        return {"reason": str(error), "lock": LOCK_CLOCKS}
    return {**asdict(reading), "throttled": sorted(reading.throttled), "lock": LOCK_CLOCKS}


def take_rates(run: Run) -> dict[str, Any]:
    """Measure the GPU's rates, and put its rooflines first in the record. NOT RUN."""
    measured = measure_rates()
    bundle = run.request.bundle
    costs = count_graphs(bundle, run.record["axes"])
    run.record["floors"].insert(
        0, roofline_on(MEASURED, "this command", as_rates(measured), costs, bundle.precision)
    )
    return dict(measured)


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
    torch = require_torch_cuda()
    from rvos_deploy.benchmarks import gpu_kernels as kernels
    from rvos_deploy.benchmarks.deformable_case import (
        HEAD_WIDTH,
        HEADS,
        LEVELS,
        POINTS,
        make_case,
    )
    from rvos_deploy.engines.plugins.ms_deform_attn.launch import primary_context
    from rvos_deploy.engines.plugins.ms_deform_attn.spec import DType

    measured = run.record["steps"].get("rates", {}).get("result")
    pixels = sum(height * width for height, width in LEVELS)
    offsets = (1, pixels, HEADS, len(LEVELS), POINTS, 2)
    macs = deformable_macs(offsets, HEAD_WIDTH)
    rows: dict[str, Any] = {}
    kinds: tuple[DType, ...] = ("fp32", "fp16")
    with primary_context():
        for kind in kinds:
            timed = kernels.time_case(
                torch.cuda,
                make_case(kind),
                run.request.rounds,
                read=run.read,
                operator=run.request.operator,
            )
            cost = GraphCost({SAMPLING: macs}, {}, 0, timed["bytes"], 0)
            least = roofline(cost, as_rates(measured), tf32=False).seconds if measured else None
            floor = None if least is None else least * 1e3
            rows[kind] = {"macs": macs, "floor_milliseconds": floor, **timed}
    return rows


def backend_step(name: str, make: Callable[[Request], Segmenter]) -> Work:
    """Return a step that opens one back end, and checks its masks. NOT RUN."""

    def work(run: Run) -> dict[str, Any]:
        torch = require_torch_cuda()
        run.setup = run.setup or cuda_setup(run.request, run.folder, run.read)
        # Engines use TF32 for the float32 islands of half-precision bundles, so PyTorch does too.
        half = run.request.bundle.precision in HALF
        torch.set_float32_matmul_precision("high" if half else "highest")
        torch.backends.cudnn.allow_tf32 = half
        opened = open_backend(run.setup, name, lambda: make(run.request))
        run.opened[name] = opened.segmenter
        return opened.figures

    return work


def turn_step(measure: Callable[[Setup, Opened], dict[str, Any]]) -> Work:
    """Return a step that measures all back ends that were opened, in turn."""

    def work(run: Run) -> dict[str, Any]:
        if run.setup is None or not run.opened:
            raise BackendError("no back end could be opened")
        return measure(run.setup, run.opened)

    return work


def stream_step(run: Run) -> dict[str, Any]:
    """Measure streams in turn, and keep the masks that are compared."""

    def measure(setup: Setup, opened: Opened) -> dict[str, Any]:
        figures, run.masks = time_streams(setup, opened)
        return figures

    return turn_step(measure)(run)


def _tensorrt(request: Request) -> Segmenter:
    return load(request.bundle.path, backend="tensorrt", device="cuda")


def _tensorrt_rtx(request: Request) -> Segmenter:
    return load(request.bundle.path, backend="tensorrt-rtx", device="cuda")


def _onnxruntime(request: Request) -> Segmenter:
    return load(request.bundle.path, backend="onnxruntime", device="cuda")


def _pytorch(request: Request, *, compiled: bool) -> Segmenter:
    from rvos_deploy.benchmarks.gpu_torch import DeviceTorchBackend

    backend = DeviceTorchBackend(request.bundle, request.checkpoint, compiled=compiled)
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
    "tests": lambda run: run_gpu_tests(run.folder),
    "engines tensorrt": build_target("tensorrt"),
    "engines tensorrt-rtx": build_target("tensorrt-rtx"),
    "kernels": time_kernels,
    **{name: backend_step(name, make) for name, make in BACKENDS_UNDER_TEST.items()},
    "streams": stream_step,
    "graphs": turn_step(time_graphs),
    "video": turn_step(time_jobs),
}
"""Steps by the names in ``gpu_plan.PLAN``, in the same order."""


def compare(run: Run) -> dict[str, Any]:
    """Compare every back end's speed with eager PyTorch's, where their masks are equal enough."""
    streams = run.record["steps"].get("streams", {}).get("result", {}).get("contenders", {})
    reference = run.masks.get(REFERENCE)
    if reference is None or REFERENCE not in streams:
        return {"reference": REFERENCE, "reason": f"{REFERENCE} was not run"}
    slow = _p50(streams[REFERENCE])
    rows: dict[str, Any] = {}
    for name, figures in streams.items():
        if name == REFERENCE:
            continue
        same = masks_j_and_f(run.masks[name], reference)
        comparable = same >= MINIMUM_J_AND_F
        rows[name] = {"j_and_f": same, "ratio": slow / _p50(figures) if comparable else None}
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


def _p50(figures: Mapping[str, Any]) -> float:
    return float(figures["milliseconds"]["p50"])
