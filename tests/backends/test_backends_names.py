"""Check that the real CUDA modules have every name that the back ends use.

cuda-bindings imports without a driver, so it is always checked. pycuda needs the driver's library,
so it is checked where it can be imported. tests/engines/test_engines_bindings.py checks TensorRT's
names.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import rvos_deploy.runtime.backends as backends

# gpu.py calls the driver's C library, whose names cuda.bindings do not all have.
SOURCES = sorted(f for f in Path(backends.__path__[0]).rglob("*.py") if f.name != "gpu.py")


def attributes(owners: set[str]) -> set[str]:
    """Return the attributes read of values with these names: ``mem_alloc`` of
    ``device.driver.mem_alloc``.
    """
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


def test_cuda_bindings_has_every_name_that_we_use() -> None:
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


def test_pycuda_and_its_stand_in_have_every_name_that_we_use() -> None:
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
