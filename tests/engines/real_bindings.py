"""Use NVIDIA's real Python bindings of TensorRT 10 and 11 without TensorRT and without a GPU.

The wheel of the bindings is installed into a scratch folder. Stand-ins compiled by gcc
supply the nine symbols that its ``tensorrt.so`` needs from TensorRT's libraries, and return
nothing. So classes, enums, signatures and NVIDIA's own Python code (``tensorrt.plugin``) are real,
and whatever needs the libraries (``trt.Builder(...)``) fails.

Checks run in a process of their own (:func:`run_with_real_bindings`), so that no other test imports
a ``tensorrt`` without libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = {
    "10.3": "tensorrt-cu12-bindings==10.3.*",
    "10.9": "tensorrt-cu12-bindings==10.9.*",
    "11": "tensorrt-cu13-bindings==11.*",
}
"""The oldest version, the oldest with ahead-of-time plugins, and the newest."""
_LIBRARIES = {
    "libnvinfer.so": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so": ("initLibNvInferPlugins",),
    "libnvonnxparser.so": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}
# Put before every check: the bindings' package is called tensorrt_bindings, and its registry is
# replaced by one that remembers, since the real one is in the library.
_PRELUDE = """
import importlib, sys
sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
for name in [n for n in sys.modules if n.startswith("tensorrt_bindings.")]:
    sys.modules[name.replace("tensorrt_bindings", "tensorrt", 1)] = sys.modules[name]
import tensorrt as trt

class RecordingRegistry:
    def __init__(self):
        self.creators = {}

    def register_creator(self, creator, namespace=""):
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name, version, namespace=""):
        return self.creators.get((name, version, namespace))

registry = RecordingRegistry()
trt.get_plugin_registry = lambda: registry
"""


def load_real_tensorrt(folder: Path, version: str) -> Path:
    """Install the bindings of a version and their stand-ins into a folder; returns it, for
    ``run_...``.

    Skips the test, with the reason, where the wheel cannot be had or gcc is missing.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is missing: no stand-ins for TensorRT's libraries")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--target", str(folder), REQUIREMENTS[version]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
        pytest.skip(f"{REQUIREMENTS[version]} cannot be installed: {lines[-1]}")
    for name, symbols in _LIBRARIES.items():
        library = f"{name}.{version.split('.')[0]}"
        source = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
        command = [gcc, "-shared", "-fPIC", "-xc", "-", f"-Wl,-soname,{library}"]
        command += ["-o", str(folder / library)]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def run_with_real_bindings(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process where ``trt`` is the real bindings, ``registry`` ours."""
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    found_there = {"LD_LIBRARY_PATH": os.pathsep.join(paths), "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", _PRELUDE + code],
        env={**os.environ, **found_there},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
