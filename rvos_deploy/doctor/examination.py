"""Run every check of the installation, in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rvos_deploy.doctor import bundle_checks, library_checks, machine_checks
from rvos_deploy.doctor.outcome import Outcome


@dataclass(frozen=True)
class Check:
    """Hold a check's title and its function, which may raise anything."""

    title: str
    run: Callable[[], Outcome]


def all_checks(bundle: str | Path) -> tuple[Check, ...]:
    """Return every check; ``bundle`` is a path or the name of a packaged bundle."""
    return (
        Check("Python", machine_checks.python),
        Check("processor", machine_checks.processor),
        Check("cores and memory", machine_checks.limits),
        Check("disk", machine_checks.disk),
        Check("FFmpeg", machine_checks.ffmpeg),
        Check("ONNX Runtime", library_checks.onnxruntime),
        Check("OpenVINO", library_checks.openvino),
        Check("GPU and driver", library_checks.gpu_driver),
        Check("ONNX Runtime on CUDA", library_checks.cuda_provider),
        Check("TensorRT", library_checks.tensorrt),
        Check("TensorRT-RTX", library_checks.tensorrt_rtx),
        Check("pycuda", library_checks.pycuda),
        Check("export and training", library_checks.export_packages),
        Check("bundle", partial(bundle_checks.bundle_files, bundle)),
        Check("one frame", partial(bundle_checks.one_frame, bundle)),
    )


def examine(checks: tuple[Check, ...]) -> Iterator[tuple[Check, Outcome]]:
    """Run the checks one after another; what a check raises is its outcome."""
    for check in checks:
        try:
            yield check, check.run()
        except Exception as error:  # whatever breaks is what the user wants to know
            yield check, library_checks.explain(error)
