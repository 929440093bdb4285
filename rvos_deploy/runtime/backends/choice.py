"""Choose the back end that ``auto`` means for a bundle: by the record of a trial, or the default.

Nothing is measured here, so the first mask waits for nothing. ``rvos-deploy choose-backend`` holds
the trial.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from rvos_deploy.bundle.folder import Bundle, packaged_bundles
from rvos_deploy.graph_io.precision_hint import PrecisionHint
from rvos_deploy.runtime.backends.base import Backend
from rvos_deploy.runtime.backends.device_names import cuda_ordinal
from rvos_deploy.runtime.backends.registry import default_backend, installed_cpu_backends
from rvos_deploy.runtime.backends.trial_record import (
    ADVANTAGE,
    Result,
    Trial,
    read_trial,
    trial_key,
)
from rvos_deploy.stream_settings import StreamSettings


@dataclass(frozen=True)
class Choice:
    """Hold the name of a back end, and why ``auto`` chose it; "" if ``auto`` was not asked."""

    name: str
    reason: str = ""

    def described(self, backend: Backend) -> dict[str, str]:
        """Describe a back end for records of results; ``auto`` says why it was chosen."""
        return {**backend.describe(), **({"auto": self.reason} if self.reason else {})}


def choose(
    name: str,
    bundle: Bundle,
    settings: StreamSettings,
    *,
    device: str = "auto",
    threads: int | None = None,
    precision_hint: PrecisionHint | None = None,
) -> Choice:
    """Return the back end of a name; ``auto`` is chosen by the bundle's trial on this machine.

    Args:
        name: ``auto``, or the name of a back end, which is returned.
        bundle: an opened bundle.
        settings: of the streams to come; only their size counts.
        device: as in ``make_backend``; ``auto`` chooses nothing for a GPU.
        threads: as in ``make_backend``.
        precision_hint: as in ``make_backend``; only openvino follows one, so ``auto`` chooses it.
    """
    if name != "auto":
        return Choice(name)
    if precision_hint is not None:
        return Choice("openvino", f"the only one that follows --precision-hint {precision_hint}")
    default = default_backend(device)
    if cuda_ordinal(device) is not None:
        return Choice(default, "the only one that runs ONNX files on a GPU")
    candidates = candidates_of(bundle)
    if len(candidates) < 2:
        return Choice(default, _only(bundle))
    trial = read_trial(trial_key(bundle, settings, threads))
    winner = None if trial is None else trial.winner()
    if trial is None or winner is None or winner.backend not in candidates:
        others = " and ".join(other for other in candidates if other != default)
        command = trial_command(bundle, settings, threads)
        return Choice(default, f"{others} was not tried here; '{command}' measures both")
    return Choice(winner.backend, _measured(trial, winner))


def candidates_of(bundle: Bundle) -> tuple[str, ...]:
    """Return the installed back ends that run a bundle on the CPU, the default first."""
    return () if bundle.precision == "bf16" else installed_cpu_backends()


def trial_command(bundle: Bundle, settings: StreamSettings, threads: int | None) -> str:
    """Return the shell command of a bundle's trial at this size, with so many threads."""
    packaged = {path.resolve(): name for name, path in packaged_bundles().items()}
    words = [packaged.get(bundle.path.resolve(), str(bundle.path))]
    if settings.size is not None:
        words += ["--size", f"{settings.size[0]}x{settings.size[1]}"]
    if settings.short_side is not None:
        words += ["--short-side", str(settings.short_side)]
    if threads is not None:
        words += ["--threads", str(threads)]
    return f"rvos-deploy choose-backend {shlex.join(words)}"


def _only(bundle: Bundle) -> str:
    if bundle.precision == "bf16":
        return "no back end for the CPU but the reference runs bf16 bundles"
    return "no other back end for the CPU is installed"


def _measured(trial: Trial, winner: Result) -> str:
    """Say what a trial found of the winner and of each other back end."""
    others = [result for result in trial.results if result is not winner]
    return f"{'; '.join(_against(winner, other) for other in others)} (trial of {trial.date})"


def _against(winner: Result, other: Result) -> str:
    if other.failure or other.milliseconds is None or winner.milliseconds is None:
        return f"{other.backend} was left out: {other.failure or 'not measured'}"
    times = f"{winner.milliseconds:.1f} ms a frame, {other.backend} {other.milliseconds:.1f}"
    if other.milliseconds < winner.milliseconds * ADVANTAGE:
        return f"{times}, less than {ADVANTAGE - 1:.0%} apart"
    return times
