"""Check the settings of a build before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rvos_deploy.engines.targets import TARGETS, TENSORRT, TENSORRT_RTX, Target
from rvos_deploy.errors import InputError
from rvos_deploy.runtime.backends.device_names import check_gpu, cuda_ordinal

DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""Default architectures of TensorRT-RTX plans: all that it knows but Turing, which has no fp32
matmul.
"""


@dataclass(frozen=True)
class BuildSettings:
    """How engines are built.

    Args:
        target: ``tensorrt`` or ``tensorrt-rtx``.
        profiles: texts as ``--profile`` accepts them; empty uses the default profile.
        workspace_mib: scratch memory of a layer in MiB; None allows all of the GPU's memory.
        optimization_level: 0 (quick build) to 5; None uses TensorRT's default, 3.
        compute_capabilities: TensorRT-RTX: architectures to build for; empty uses the default ones.
        timing_cache: TensorRT: file of kernel timings; None uses one in the user's cache folder.
        use_timing_cache: False times every kernel again.
        version_compatible: TensorRT: later versions can load the engine, which then holds host
            code.
        hardware_compatible: TensorRT: the engine runs on Ampere and later, slower.
        strip_weights: TensorRT: leave the weights out; loading takes them from the ONNX.
        device: the GPU that builds and runs the engine: ``cuda``, ``cuda:N``, or its UUID. Of no
            account where there is no GPU (TensorRT-RTX).

    Raises:
        InputError: a value is out of range, the target lacks an option, or CUDA shows no such GPU.
    """

    target: str
    profiles: tuple[str, ...] = ()
    workspace_mib: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None
    use_timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"unknown target '{self.target}'; known: {', '.join(TARGETS)}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(
                f"--optimization-level must be 0 to 5, found {self.optimization_level}"
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f"--workspace must be at least 1 MiB, found {self.workspace_mib}")
        check_gpu(self.device)
        given = [name for name, value in self._of_the_other_target().items() if value]
        if given:
            other = TENSORRT_RTX if self.target == TENSORRT.name else TENSORRT
            raise InputError(
                f"{', '.join(given)} is for --target {other.name} only; leave it out"
                + (f" ({_WHY_NOT_RTX[given[0]]})" if given[0] in _WHY_NOT_RTX else "")
            )

    def _of_the_other_target(self) -> dict[str, object]:
        if self.target == TENSORRT.name:
            return {"--compute-capability": self.compute_capabilities}
        return {
            "--version-compatible": self.version_compatible,
            "--hardware-compatible": self.hardware_compatible,
            "--strip-weights": self.strip_weights,
            "--timing-cache": self.timing_cache,
        }

    @property
    def library(self) -> Target:
        """The TensorRT that builds."""
        return TARGETS[self.target]

    @property
    def ordinal(self) -> int:
        """The number of the GPU among those that CUDA shows to this process."""
        return cuda_ordinal(self.device) or 0

    def options(self) -> tuple[str, ...]:
        """Return the command-line options that differ from the defaults, so that a build can be
        repeated.

        The timing cache and the device are left out: they belong to a machine, and the sidecar
        names the GPU.
        """
        words: list[str] = []
        for option, values in (
            ("--profile", self.profiles),
            ("--compute-capability", self.compute_capabilities),
        ):
            for value in values:
                words += [option, value]
        for option, number in (
            ("--workspace", self.workspace_mib),
            ("--optimization-level", self.optimization_level),
        ):
            if number is not None:
                words += [option, str(number)]
        for option, chosen in (
            ("--version-compatible", self.version_compatible),
            ("--hardware-compatible", self.hardware_compatible),
            ("--strip-weights", self.strip_weights),
        ):
            words += [option] if chosen else []
        return tuple(words)


_WHY_NOT_RTX = {
    "--version-compatible": "its packages have no lean runtime",
    "--hardware-compatible": "it builds for several --compute-capability at once",
    "--strip-weights": "it compiles stripped plans on a GPU only",
    "--timing-cache": "it times nothing",
}
