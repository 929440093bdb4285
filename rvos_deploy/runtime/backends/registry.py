"""Find a back end by name."""

from __future__ import annotations

from collections.abc import Callable

from rvos_deploy.errors import BackendError
from rvos_deploy.runtime.backends.base import Backend


def _onnxruntime(device: str, threads: int | None) -> Backend:
    from rvos_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(device, threads)


_BACKENDS: dict[str, Callable[[str, int | None], Backend]] = {"onnxruntime": _onnxruntime}
BACKEND_NAMES = ("auto", *_BACKENDS)


def make_backend(name: str = "auto", device: str = "cpu", threads: int | None = None) -> Backend:
    """Make the back end of that name; ``auto`` is onnxruntime.

    Raises:
        BackendError: unknown name, library not installed, or device not available.
    """
    chosen = "onnxruntime" if name == "auto" else name
    if chosen not in _BACKENDS:
        raise BackendError(f"unknown back end '{name}'; known: {', '.join(BACKEND_NAMES)}")
    return _BACKENDS[chosen](device, threads)
