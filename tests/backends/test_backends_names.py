"""Every name that the back ends use of the CUDA modules is in the real ones.

cuda-bindings imports without a driver, so it is always asked. pycuda needs the driver's library: it
is asked where it can be imported. TensorRT's names: tests/engines/test_engines_bindings.py.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import rvos_deploy.runtime.backends as backends

SOURCES = sorted(Path(backends.__path__[0]).rglob("*.py"))


def attributes(owners: set[str]) -> set[str]:
    """What is read of values with these names, as ``device.driver.mem_alloc`` of ``driver``."""
    found = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", None)
                if name in owners:
                    found.add(node.attr)
    return found


def is_of_the_driver_api(name: str) -> bool:
    return re.match(r"cu[A-Z]|CU", name) is not None


def test_cuda_bindings_has_all_that_we_use() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    named = {
        name
        for file in SOURCES
        for name in re.findall(r'"(cu[A-Z]\w+)"', file.read_text(encoding="utf-8"))
    }
    read = {name for name in attributes({"driver", "bindings"}) if is_of_the_driver_api(name)}
    assert {"cuGraphLaunch", "cuCtxPopCurrent", "cuPointerGetAttribute"} <= named
    assert {"CUstreamCaptureMode", "CUstream", "cuStreamEndCapture"} <= read
    assert [name for name in sorted(named | read) if not hasattr(driver, name)] == []
    for enum in ("CUstreamCaptureMode", "CUpointer_attribute", "CUevent_flags"):
        for member in attributes({enum}):
            assert hasattr(getattr(driver, enum), member)


def test_pycuda_has_all_that_we_use_and_so_has_its_stand_in() -> None:
    from recording_cuda import FakePycuda, Machine

    names = {name for name in attributes({"driver", "pycuda"}) if not is_of_the_driver_api(name)}
    assert {"Stream", "mem_alloc", "memcpy_htod_async", "memcpy_dtod_async", "MemoryError"} <= names
    stand_in = FakePycuda(Machine())
    assert [name for name in sorted(names) if not hasattr(stand_in, name)] == []
    try:
        pycuda = importlib.import_module("pycuda.driver")
    except ImportError as error:
        pytest.skip(f"pycuda cannot be imported ({error}): the stand-in was asked only")
    assert [name for name in sorted(names) if not hasattr(pycuda, name)] == []
