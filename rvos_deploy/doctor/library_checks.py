"""Check the libraries that run networks, and the GPU's driver.

What needs a GPU was NOT RUN: the development machine has none. The tests give these checks the
answers of a machine that has one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rvos_deploy.bundle.folder import open_bundle
from rvos_deploy.doctor.outcome import Outcome, absent, failed, passed
from rvos_deploy.errors import BackendError, RvosError, one_line
from rvos_deploy.runtime.backends.gpu import driver_cuda_version, find_gpu
from rvos_deploy.runtime.backends.imports import import_library
from rvos_deploy.runtime.backends.registry import installed_cpu_backends

EXPORT_PACKAGES = ("torch", "open_clip_torch", "onnx", "onnxscript", "safetensors", "transformers")
"""Packages of the extra ``export``."""
SMALLEST_GRAPH = "mask_head"
"""Graph of the packaged bundle that a provider is started with."""

_CUDA = "CUDAExecutionProvider"


def installed(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed; import nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def onnxruntime() -> Outcome:
    """Check that one onnxruntime is installed, not two that shadow each other, and loads."""
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    if cpu and gpu:
        return failed(
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed, and one hides the "
            "other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'rvos-deploy[gpu]' (or "
            "[cpu])",
        )
    if not cpu and not gpu:
        install = "pip install 'rvos-deploy[cpu]'"
        if installed_cpu_backends():
            return absent("onnxruntime is not installed; openvino runs the graphs", install)
        return failed("neither onnxruntime nor openvino is installed", install)
    library = import_library("onnxruntime", "onnxruntime")
    assert library is not None
    name = "onnxruntime" if cpu else "onnxruntime-gpu"
    providers = (one.removesuffix("ExecutionProvider") for one in library.get_available_providers())
    return passed(f"{name} {library.__version__}, offers {', '.join(providers)}")


def cuda_provider() -> Outcome:
    """Check that ONNX Runtime's CUDA provider really starts."""
    if not installed("onnxruntime-gpu"):
        return _without_gpu(
            "onnxruntime-gpu is not installed",
            "pip uninstall -y onnxruntime && pip install 'rvos-deploy[gpu]'",
        )
    if find_gpu() is None:
        return absent("onnxruntime-gpu is installed, but CUDA shows no GPU")
    from rvos_deploy.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend

    with OnnxRuntimeBackend("cuda").open(open_bundle("tiny"), [SMALLEST_GRAPH]):
        return passed(f"{_CUDA} started")


def openvino() -> Outcome:
    """Check that OpenVINO loads, and say whether this CPU multiplies in bfloat16."""
    library = import_library("openvino", "openvino")
    if library is None:
        return absent("openvino is not installed", "pip install 'rvos-deploy[openvino]'")
    formats = library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    hint = "can" if "BF16" in formats else "cannot"
    release = str(library.__version__).split("-")[0]
    return passed(f"openvino {release}; this CPU {hint} follow --precision-hint bf16")


def gpu_driver() -> Outcome:
    """Check the NVIDIA driver against the CUDA release of the installed packages."""
    cuda = driver_cuda_version()
    if cuda is None:
        return absent("no NVIDIA driver; TensorRT-RTX engines can be built here, but not run")
    gpu = find_gpu()
    if gpu is None:
        return failed(
            f"a driver for CUDA {cuda[0]}.{cuda[1]} is there, but it shows no GPU",
            "look at nvidia-smi and at CUDA_VISIBLE_DEVICES; containers need --gpus all",
        )
    found = (
        f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA "
        f"{cuda[0]}.{cuda[1]}"
    )
    needed = installed("cuda-bindings")
    if needed is not None and int(needed.split(".")[0]) > cuda[0]:
        return failed(
            f"{found}, but cuda-bindings {needed} need a driver for CUDA {needed.split('.')[0]}",
            "install a newer driver, or: pip install 'rvos-deploy[tensorrt-cu12]'",
        )
    return passed(found)


def tensorrt() -> Outcome:
    """Check that TensorRT and the libraries that drive CUDA load."""
    return _engine_library("tensorrt", "tensorrt")


def tensorrt_rtx() -> Outcome:
    """Check that TensorRT-RTX and the libraries that drive CUDA load."""
    return _engine_library("tensorrt_rtx", "tensorrt-rtx")


def pycuda() -> Outcome:
    """Check that pycuda loads where it is installed."""
    if find_spec("pycuda") is None:
        return absent("pycuda is not installed; cuda-bindings does its work")
    if import_library("pycuda.driver", "pycuda", advice="check the GPU's driver with nvidia-smi"):
        return passed(f"pycuda {installed('pycuda')}")
    return failed("pycuda has no module pycuda.driver", "pip install --force-reinstall pycuda")


def export_packages() -> Outcome:
    """Say whether networks can be exported and trained here; import nothing."""
    missing = [name for name in EXPORT_PACKAGES if installed(name) is None]
    if missing:
        return absent(
            f"export and train need {', '.join(missing)}", "pip install 'rvos-deploy[train]'"
        )
    words = (f"{name} {installed(name)}" for name in EXPORT_PACKAGES)
    return passed(", ".join(words))


def _engine_library(module: str, extra: str) -> Outcome:
    install = f"pip install 'rvos-deploy[{extra}]'"
    if find_spec(module) is None:
        return _without_gpu(f"{extra} is not installed", install)
    from rvos_deploy.runtime.backends.cuda.libraries import import_tensorrt

    try:
        library, cuda = import_tensorrt(module)
    except BackendError as error:
        return failed(one_line(error), install)
    return passed(f"{extra} {library.__version__}, CUDA by {cuda.name}")


def _without_gpu(found: str, install: str) -> Outcome:
    """Say how to install something, if there is a GPU that could use it."""
    return absent(found, install if driver_cuda_version() is not None else "")


def explain(error: Exception) -> Outcome:
    """Return that a check could not be made. An error of ours names its fix."""
    text = one_line(error) or type(error).__name__
    if isinstance(error, RvosError):
        found, _, fix = text.rpartition("; ")
        return failed(found or text, fix if found else "")
    return failed(f"{type(error).__name__}: {text}", "run again with --debug, and report it")
