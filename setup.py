"""Build the CPU kernel of deformable attention where a C++ compiler is.

The kernel is a plain C library, not a Python module: one wheel per platform serves every Python.
Without a compiler the package installs without the kernel, and slower operators take its place.
pyproject.toml holds all else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
KERNEL = Extension(
    "rvos_deploy.cpu_ops.ms_deform_attn_kernel",
    sources=["rvos_deploy/cpu_ops/ms_deform_attn.cpp"],
    depends=["rvos_deploy/cpu_ops/ms_deform_attn_kernel.inl"],
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-g0",
        "-fopenmp-simd",
        # The kernel reads no errno and no floating-point flags. It does need NaN and infinity.
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wno-psabi",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
    optional=True,
)


class BuildLibrary(build_ext):
    """Build a library whose name is the same for every Python, and which exports no module."""

    def get_ext_filename(self, name: str) -> str:
        """Return the path in the package."""
        return str(Path(*name.split(".")).with_suffix(SUFFIX))

    def get_export_symbols(self, extension: Extension) -> list[str]:
        """Return no name of a Python module."""
        return extension.export_symbols


class TagWheel(bdist_wheel):
    """Tag the wheel for every Python 3, on this platform if the library was built."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return (Python, ABI, platform)."""
        platform = super().get_tag()[2]
        built = Path(self.bdist_dir, "rvos_deploy/cpu_ops").glob(f"*{SUFFIX}")
        return "py3", "none", platform if any(built) else "any"


setup(ext_modules=[KERNEL], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel})
