"""Measure the rates of this GPU, which rooflines are computed from.

NOT RUN: it needs a GPU.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rvos_deploy.benchmarks.gpu_specs import Rates
from rvos_deploy.errors import BackendError

WARM_UP, RUNS = 5, 20
COPIED = 2**30
"""Bytes of the copy, far more than any cache holds."""
SIDE = 8192
"""Side of the square matrices, large enough that arithmetic bounds every GPU."""

_QUERY = (
    "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "temperature.gpu,power.draw,power.limit,pstate,pcie.link.gen.current,pcie.link.width.current"
)


def require_torch_cuda() -> Any:
    """Import PyTorch, and check that it sees a GPU.

    Raises:
        BackendError: PyTorch is not installed, was built without CUDA, or sees no GPU.
    """
    try:
        import torch
    except ImportError:
        raise BackendError("torch is not installed; pip install 'rvos-deploy[export]'") from None
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise BackendError(f"torch {torch.__version__} ({built}) sees no GPU")
    return torch


def measure_rates() -> dict[str, float | None]:
    """Measure the fields of :class:`Rates`: the best of 20 runs each, by CUDA events. NOT RUN.

    A roofline needs the best rate of the GPU, not its average.
    """
    torch = require_torch_cuda()
    with torch.inference_mode():
        bandwidth = _copy_bandwidth(torch)
        # Turing's tensor cores have neither bfloat16 nor TF32; PyTorch emulates bfloat16 there.
        modern = torch.cuda.get_device_capability()[0] >= 8
        with _products(torch, "highest", half=False):
            fp32 = _matmul_flops(torch, torch.float32)
            half = _matmul_flops(torch, torch.float16)
            bf16 = _matmul_flops(torch, torch.bfloat16) if modern else None
        with _products(torch, "high", half=True):
            tf32 = _matmul_flops(torch, torch.float32) if modern else None
            half = max(half, _matmul_flops(torch, torch.float16))
    torch.cuda.empty_cache()
    return {
        "bytes_per_second": bandwidth,
        "fp32_flops": fp32,
        "fp16_flops": half,
        "bf16_flops": bf16,
        "tf32_flops": tf32,
    }


def as_rates(measured: dict[str, Any]) -> Rates:
    """Return the measured rates as :class:`Rates`."""
    return Rates(**measured)


@contextmanager
def _products(torch: Any, float32: str, *, half: bool) -> Iterator[None]:
    """Set how matrices are multiplied: float32 by TF32 ("high") or not, float16 summed in half or
    not.
    """
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_fp16_accumulation
    torch.set_float32_matmul_precision(float32)
    matmul.allow_fp16_accumulation = half
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        matmul.allow_fp16_accumulation = before[1]


def _copy_bandwidth(torch: Any) -> float:
    """Measure bytes per second; each byte is read once and written once."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED / _best_seconds(torch, lambda: target.copy_(source))


def _matmul_flops(torch: Any, dtype: Any) -> float:
    left, right = (torch.randn(SIDE, SIDE, device="cuda").to(dtype) for _ in range(2))
    output = torch.empty(SIDE, SIDE, dtype=dtype, device="cuda")
    seconds = _best_seconds(torch, lambda: torch.matmul(left, right, out=output))
    return float(2 * SIDE**3 / seconds)


def _best_seconds(torch: Any, run: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(RUNS)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return float(min(start.elapsed_time(end) for start, end in events)) / 1e3


def ask_nvidia_smi(uuid: str | None) -> dict[str, Any]:
    """Return a GPU's state and its processes, as nvidia-smi reports them. NOT RUN.

    Args:
        uuid: of the GPU (``runtime.backends.gpu.gpu_uuid``). nvidia-smi numbers GPUs in another way
            than CUDA, and does not heed ``CUDA_VISIBLE_DEVICES``.

    Raises:
        BackendError: the UUID is unknown, there is no nvidia-smi, or it failed.
    """
    if uuid is None:
        raise BackendError("the driver does not tell the GPU's UUID, by which nvidia-smi finds it")
    values = _nvidia_smi("--query-gpu=" + _QUERY, f"--id={uuid}")
    names = _QUERY.split(",")
    state = dict(zip(names, (value.strip() for value in values[0].split(",")), strict=True))
    others = _nvidia_smi("--query-compute-apps=pid,name,used_memory", f"--id={uuid}")
    return {"state": state, "processes": others}


def _nvidia_smi(*arguments: str) -> list[str]:
    command = ["nvidia-smi", *arguments, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise BackendError("nvidia-smi is not on the PATH") from None
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"nvidia-smi failed: {error}") from error
    return [line for line in done.stdout.splitlines() if line.strip()]
