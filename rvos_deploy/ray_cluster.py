"""Start a private Ray on this machine, or connect to a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

from rvos_deploy import stopping
from rvos_deploy.environment import usable_cores
from rvos_deploy.errors import BackendError, InputError, one_line
from rvos_deploy.files import create_temporary_folder, discard

# Only jobs and outcomes pass through it. Ray's minimum is 75 MiB.
_OBJECT_STORE_BYTES = 100 * 2**20
# A socket's path has at most 107 bytes, of which 12 are left for the folder of temporary files.
_LONGEST_TEMPORARY = 12
# Seconds until the thread that receives signals has seen one.
_PATIENCE = 1.0
# Seconds in which a cluster accepts a connection.
_CONNECT_PATIENCE = 10.0
# Kinds of machines that a warning lists.
_MOST_LISTED = 3

_ENVIRONMENT = {
    # Ray sends nothing to its makers.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker without a GPU sees what CUDA_VISIBLE_DEVICES allows; without it, Ray warns.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Errors of Ray Serve come as exceptions.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # The environment of this process is the one of the workers.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_LOCAL = {
    # Without clusters, Ray uses loopback addresses only; Linux needs this variable for that too,
    # because Ray replaces a loopback address that it is given.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Other users of this machine reach loopback too. Ray would write a token into ~/.ray.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Variables of a private Ray. Ray reads most of them once in a process."""

_DEFAULT_CPUS = 4
_GPU_BACKENDS = ("tensorrt", "tensorrt-rtx")

_imported_private = False


@dataclass(frozen=True)
class Shares:
    """Say how many workers there are, and which share of the machine each has.

    Args:
        workers: None: as many as fit.
        cpus: cores of a worker, at least 1.
        gpus: GPUs of a worker; a fraction shares one.
    """

    workers: int | None
    cpus: int
    gpus: float


def choose_shares(
    workers: int | None,
    cpus: int | None,
    gpus: float | None,
    backend: str,
    device: str,
) -> Shares:
    """Return the number of workers (None: as many as fit) and their shares; None: the default.

    Raises:
        InputError: the device is a certain GPU, or a GPU without a share of one.
    """
    if ":" in device:
        raise InputError(f"--device {device}: Ray gives each worker its GPU; write --device cuda")
    needs_gpu = device == "cuda" or (backend in _GPU_BACKENDS and device != "cpu")
    gpus = float(needs_gpu) if gpus is None else gpus
    if needs_gpu and not gpus:
        raise InputError("a worker on a GPU needs a share of one; give --gpus 1, or --gpus 0.5")
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"--gpus {gpus:g} is neither a whole number nor below 1")
    return Shares(workers, cpus or min(_DEFAULT_CPUS, usable_cores()), gpus)


def _import_ray(*, private: bool) -> ModuleType:
    """Import Ray, which reads its variables now. Raises BackendError."""
    global _imported_private
    if "ray" not in sys.modules:
        _imported_private = private
    elif private and not _imported_private:
        raise BackendError(
            "this process has imported Ray, which is then not private; start another process, or "
            "import Ray later"
        )
    import ray
    import ray.exceptions

    module: ModuleType = ray
    return module


@contextmanager
def connected(address: str | None, shares: Shares) -> Iterator[ModuleType]:
    """Connect to Ray, and yield it; at the end, disconnect, and end what was started here.

    Args:
        address: of a cluster, which stays; None: a Ray on this machine that listens on loopback
            only and ends with the block, or with this process.
        shares: what the workers need.

    Raises:
        BackendError: Ray does not start, or does not connect.
        InputError: this machine has fewer GPUs than one worker needs.
    """
    with ExitStack() as stack:
        variables = _ENVIRONMENT if address else _ENVIRONMENT | _LOCAL
        stack.enter_context(_environment(variables))
        ray = _import_ray(private=not address)
        # Ray prints there when a worker dies, which the outcome of its video says, too.
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        _start(ray, {"address": address} if address else _local_options(shares, stack), stack)
        if not address:
            _check_local(ray, shares)
        yield ray


def check_available(address: str | None, extra: str = "ray") -> None:
    """Check that Ray is installed, and that a cluster answers, before anything is written.

    Args:
        address: HOST:PORT of a cluster; None: Ray is started on this machine.
        extra: the one that installs what the command needs.

    Raises:
        InputError: the address has another form.
        BackendError: Ray is not installed, or no cluster answers; Ray would try for minutes.
    """
    if find_spec("ray") is None:
        raise BackendError(
            f"this command runs on Ray, which is not installed; pip install 'rvos-deploy[{extra}]'"
        )
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--address '{address}' is not of the form HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"no Ray cluster answers at {address} ({one_line(error)}); check --address"
        ) from error


def _check_local(ray: ModuleType, shares: Shares) -> None:
    here = ray.util.get_node_ip_address()
    if not ip_address(here).is_loopback:
        raise BackendError(
            f"Ray {ray.__version__} listens on {here} instead of loopback; install another version"
        )
    if not count_workers(ray, shares):
        found = ray.cluster_resources().get("GPU", 0)
        raise InputError(
            f"a worker needs {shares.gpus:g} GPU, and Ray finds {found:g}; lower --gpus, or use "
            "--device cpu"
        )


def count_workers(ray: ModuleType, shares: Shares) -> int:
    """Return the number of workers that fit the connected machines; none is spread over two."""
    return sum(_fitting(cpus, gpus, shares) for cpus, gpus in _machines(ray))


def describe_lack(ray: ModuleType, shares: Shares) -> str | None:
    """Say in one line why no worker fits any machine; None: one fits.

    Ray lets such a worker wait for a machine that joins later, and says nothing.
    """
    if count_workers(ray, shares):
        return None
    found = sorted({_amounts(cpus, gpus) for cpus, gpus in _machines(ray)})
    listed = ", ".join(found[:_MOST_LISTED]) or "none"
    more = f", and {len(found) - _MOST_LISTED} more kinds" if len(found) > _MOST_LISTED else ""
    return (
        f"a worker needs {_amounts(shares.cpus, shares.gpus)}, and no machine of the cluster has "
        f"that (machines: {listed}{more}); nothing runs until one joins: add it, or stop this and "
        "lower --cpus or --gpus"
    )


def _machines(ray: ModuleType) -> list[tuple[float, float]]:
    """List the CPUs and GPUs of each machine."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(machine.get("CPU", 0), machine.get("GPU", 0)) for machine in found]


def _fitting(cpus: float, gpus: float, shares: Shares) -> int:
    counts = [int(cpus // shares.cpus)]
    if shares.gpus:
        counts.append(int(gpus // shares.gpus))
    return min(counts)


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'' if cpus == 1 else 's'} and {gpus:g} GPU{'' if gpus == 1 else 's'}"


def _local_options(shares: Shares, stack: ExitStack) -> dict[str, Any]:
    folder = create_temporary_folder(_temporary_root() / "rvos")
    stack.callback(discard, folder)
    folder.chmod(0o700)  # Ray lets everybody write into its own folder
    return {
        "address": "local",
        # As many as the workers need, even if the machine has fewer.
        "num_cpus": max(usable_cores(), (shares.workers or 1) * shares.cpus),
        "num_gpus": None if shares.gpus else 0,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": str(folder / "ray"),
    }


def _temporary_root() -> Path:
    root = Path(tempfile.gettempdir())
    return root if len(os.fsencode(root)) <= _LONGEST_TEMPORARY else Path("/tmp")


def _start(ray: ModuleType, options: dict[str, Any], stack: ExitStack) -> None:
    """Initialise Ray, and keep this program's own handling of stops."""
    # A stop in the midst of it would leave processes.
    with stopping.deferred():
        handlers = {number: signal.getsignal(number) for number in stopping.SIGNALS}
        stack.callback(ray.shutdown)
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = options["address"]
            fix = "check --address" if where != "local" else "see --debug"
            raise BackendError(f"Ray does not start ({where}): {one_line(error)}; {fix}") from error
        except SystemExit as error:  # by Ray's own handler of SIGTERM, which it sets meanwhile
            raise (stopping.requested(_PATIENCE) or error) from None
        finally:
            for number, handler in handlers.items():
                with suppress(ValueError, TypeError):  # not in the main thread, or not Python's
                    signal.signal(number, handler)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
