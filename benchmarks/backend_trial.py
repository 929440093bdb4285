"""Hold a trial of a bundle's back ends on this CPU: equal to the reference, and how fast.

``rvos-deploy choose-backend`` calls it, and ``--backend auto`` reads the record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from rvos_deploy.benchmarks.timing import mask_parity, push_through
from rvos_deploy.bundle.folder import Bundle
from rvos_deploy.errors import BackendError, ParityError, one_line
from rvos_deploy.graph_io.graph_spec import fixed_box
from rvos_deploy.graph_io.probe import PROBE_EXPRESSIONS, probe_clip
from rvos_deploy.parity.verification import MINIMUM_J_AND_F, verify
from rvos_deploy.progress import StepProgress, ignore_steps
from rvos_deploy.runtime.backends.registry import make_backend
from rvos_deploy.runtime.backends.trial_record import Result, Trial, trial_key
from rvos_deploy.runtime.frame_masks import FrameMasks
from rvos_deploy.runtime.limits import check_geometry, check_limits
from rvos_deploy.runtime.segmenter import Segmenter
from rvos_deploy.stream_settings import DEFAULT_MEMORY, StreamSettings

WARM_UP = 6
"""Frames before the clock counts: OpenVINO compiles for sizes that have repeated."""
FRAMES = 24
"""Frames that are measured at most."""
FEWEST = 5
"""Frames that are measured at least, also after ``SECONDS``."""
SECONDS = 10.0
"""Time of all back ends together, after which no further frame is measured."""
LEAST_CORES = 0.8
"""Cores that this process must get, as CPU time by time, while frames are measured. It always has a
thread to run, so it gets at least one where no other program takes the cores."""
_LONGEST = 300


def hold_trial(
    bundle: Bundle,
    candidates: Sequence[str],
    settings: StreamSettings | None = None,
    *,
    threads: int | None = None,
    progress: StepProgress = ignore_steps,
) -> Trial:
    """Verify each back end, then measure the ones that passed, in turn on the same frames.

    A back end is equal to the reference if it passes every check of ``verify``, and if its masks
    of the measured frames have a J&F of at least ``MINIMUM_J_AND_F`` with those of the first.

    Args:
        bundle: an opened bundle.
        candidates: names of back ends that run on the CPU, in the order of preference.
        settings: only the size counts. None: the bundle's size.
        threads: as in ``make_backend``.
        progress: called with each step.

    Raises:
        InputError: the graphs do not take the size.
        BackendError: other programs take the cores, so the times mean nothing.
        ParityError: no back end is equal to the reference.
    """
    settings = settings or StreamSettings()
    measured = _stream_settings(bundle, settings)
    failures = {name: _failed_checks(bundle, name, threads, progress) for name in candidates}
    contenders = [_Contender(name) for name, failure in failures.items() if not failure]
    progress(f"speed of {', '.join(contender.name for contender in contenders)}")
    _measure(bundle, contenders, measured, threads)
    _compare_masks(contenders)
    results = {contender.name: contender.result() for contender in contenders}
    trial = Trial(
        key=trial_key(bundle, settings, threads),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        results=tuple(
            results.get(name) or Result(backend=name, failure=failure)
            for name, failure in failures.items()
        ),
    )
    if trial.winner() is None:
        found = "; ".join(f"{result.backend}: {result.failure}" for result in trial.results)
        raise ParityError(
            f"no back end reproduces the reference of {bundle.path} here ({found}); "
            "'rvos-deploy verify' shows every check"
        )
    return trial


def _failed_checks(bundle: Bundle, name: str, threads: int | None, progress: StepProgress) -> str:
    """Return why a back end does not reproduce the bundle's reference; "" if it does."""
    try:
        checks = verify(
            bundle,
            make_backend(name, "cpu", threads),
            lambda step: progress(f"verifying {name}: {step}"),
        )
    except BackendError as error:
        return one_line(error, _LONGEST)
    failed = sum(not check.passed for check in checks)
    return f"{failed} of {len(checks)} checks failed" if failed else ""


def _stream_settings(bundle: Bundle, settings: StreamSettings) -> StreamSettings:
    """Return the settings of the measured stream: online, and with a mask in every frame.

    Raises:
        InputError: the graphs do not take the size.
    """
    memories = [a.maximum for spec in bundle.graphs.values() for a in spec.axes if a.name == "M"]
    chosen = StreamSettings(
        mode="online",
        memory=min([DEFAULT_MEMORY, *memories]),
        fallback="top1",
        size=settings.size,
        short_side=settings.short_side,
    )
    fixed = fixed_box(bundle.graphs)
    sized = bundle.network.with_size(chosen, fixed)
    check_limits(bundle.graphs, sized, len(PROBE_EXPRESSIONS))
    height, width = probe_clip(1).shape[1:3]
    check_geometry(bundle.graphs, bundle.network.geometry((height, width), sized, fixed))
    return sized


class _Contender:
    """Run one back end, and collect its times and masks."""

    def __init__(self, name: str) -> None:
        self.name, self.failure = name, ""
        self._seconds: list[float] = []
        self.masks: list[FrameMasks] = []

    def open(
        self, stack: ExitStack, bundle: Bundle, settings: StreamSettings, threads: int | None
    ) -> None:
        """Open a stream, which ``stack`` closes."""
        backend = make_backend(self.name, "cpu", threads)
        segmenter = stack.enter_context(Segmenter(bundle, backend))
        self._stream = stack.enter_context(segmenter.stream(PROBE_EXPRESSIONS, settings))

    def push(self, frame: NDArray[np.uint8], *, timed: bool) -> None:
        """Run a frame; a failure ends this back end's trial."""
        if self.failure:
            return
        started = time.perf_counter()
        try:
            self.masks += push_through(self._stream, frame)
        except BackendError as error:
            self.failure = one_line(error, _LONGEST)
        if timed:
            self._seconds.append(time.perf_counter() - started)

    def result(self) -> Result:
        if self.failure:
            return Result(backend=self.name, failure=self.failure)
        return Result(backend=self.name, milliseconds=float(np.median(self._seconds)) * 1e3)


def _measure(
    bundle: Bundle, contenders: list[_Contender], settings: StreamSettings, threads: int | None
) -> None:
    """Push the same frames through every contender in turn.

    Raises:
        BackendError: other programs take the cores.
    """
    with ExitStack() as stack:
        for contender in contenders:
            contender.open(stack, bundle, settings, threads)
        started = used = 0.0
        for number, frame in enumerate(_frames()):
            if number == WARM_UP:
                started, used = time.perf_counter(), time.process_time()
            if number >= WARM_UP + FEWEST and time.perf_counter() - started > SECONDS:
                break
            for contender in contenders:
                contender.push(frame, timed=number >= WARM_UP)
        cores = (time.process_time() - used) / (time.perf_counter() - started)
    running = any(not contender.failure for contender in contenders)
    if running and cores < LEAST_CORES:
        raise BackendError(
            f"other programs take the cores (this one got {cores:.2f} of them, needed: "
            f"{LEAST_CORES}), so the times mean nothing; hold the trial when the machine is idle"
        )


def _compare_masks(contenders: list[_Contender]) -> None:
    """Note a failure where masks differ from those of the first contender that did not fail."""
    running = [contender for contender in contenders if not contender.failure]
    for contender in running[1:]:
        agreement = mask_parity(running[0].masks, contender.masks)
        if agreement < MINIMUM_J_AND_F:
            contender.failure = (
                f"its masks agree with those of {running[0].name} to J&F {agreement:.4f} only"
            )


def _frames() -> NDArray[np.uint8]:
    """Return the probe clip, forwards and backwards, because its objects leave the frame."""
    clip = probe_clip()
    there_and_back = np.concatenate([clip, clip[-2:0:-1]])
    return np.resize(there_and_back, (WARM_UP + FRAMES, *clip.shape[1:]))
