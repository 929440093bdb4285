"""Start Ray Serve with the replicas of a bundle, wait for a stop, and end everything."""

from __future__ import annotations

import http.client
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from rvos_deploy import stopping
from rvos_deploy.errors import BackendError, InputError, one_line
from rvos_deploy.files import temporary_folder
from rvos_deploy.listening import callable_host, free_port, is_loopback
from rvos_deploy.ray_cluster import Shares, check_available, connected
from rvos_deploy.serving.app import ServerOptions, make_app
from rvos_deploy.serving.measurements import Board

_BOARD, _NAMESPACE = "rvos-measurements", "rvos"
# A replica takes requests beyond its streams, to refuse them and to answer about its health.
_SPARE_REQUESTS = 32
_READY_SECONDS = 600.0
_WAIT = 0.2


@dataclass(frozen=True)
class Place:
    """Say where a server listens and how it ends.

    Args:
        host: name or address.
        port: 0 takes a free one.
        grace: seconds that open streams get to end after a stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grace: float = 5.0


def serve_forever(
    options: ServerOptions, shares: Shares, place: Place, on_ready: Callable[[int], None]
) -> None:
    """Serve until a stop.

    Args:
        options: of the replicas.
        shares: number of replicas, and what each has.
        place: where to listen.
        on_ready: called with the port once every replica can segment.

    Raises:
        InputError: the place is taken, or others reach it and there is no token.
        BackendError: Ray is not installed or does not start, or the bundle cannot be loaded.
    """
    if not is_loopback(place.host) and options.token is None:
        raise InputError(
            f"--host {place.host} lets other machines in, so a token is needed; set "
            "RVOS_SERVE_TOKEN, or pass --token-file FILE"
        )
    check_available(None, "serve")
    port = free_port(place.host, place.port)
    replicas = shares.workers or 1
    with (
        temporary_folder("rvos-serve") as folder,
        connected(None, Shares(replicas, shares.cpus, shares.gpus)) as ray,
        stopping.deferred(),
    ):
        options = replace(options, folder=str(folder))
        from ray import serve

        # Serve's own lines at its start; what goes wrong is raised.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            actor = ray.remote(Board).options(
                name=_BOARD, namespace=_NAMESPACE, num_cpus=0, max_restarts=-1
            )
            board = actor.remote()  # it ends with its last reference
            _deploy(serve, options, shares, Place(place.host, port, place.grace))
            _wait_until_ready(options, place.host, port, replicas)
            ray.get(board.set_ready.remote())
            on_ready(port)
            _wait_for_stop(ray, board)
        except ray.exceptions.RayError as error:
            raise BackendError(f"Ray failed: {one_line(error)}; see --debug") from error
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _wait_for_stop(ray: ModuleType, board: Any) -> None:
    """Wait until a stop is raised, and print what went wrong in the replicas."""
    asked = board.take_reports.remote()
    while True:
        stopping.check()
        time.sleep(_WAIT)
        done, _ = ray.wait([asked], timeout=0)
        if done:
            with suppress(ray.exceptions.RayActorError):  # the board is being restarted
                for report in ray.get(asked):
                    print(report, file=sys.stderr, end="", flush=True)
            asked = board.take_reports.remote()


def _deploy(serve: ModuleType, options: ServerOptions, shares: Shares, place: Place) -> None:
    quiet = {"log_level": "ERROR", "enable_access_log": False}

    def build() -> Any:  # in the replica
        import ray
        from ray import serve

        board: Any = ray.get_actor(_BOARD, namespace=_NAMESPACE)

        async def exchange(replica: str, text: str) -> list[str]:
            texts: list[str] = await board.put.remote(replica, text)
            return texts

        def report(text: str) -> None:
            board.report.remote(text)

        name = serve.get_replica_context().replica_id.unique_id
        again = ray.get(board.was_ready.remote())
        return make_app(options, name, exchange, report, again=again)

    deployment = serve.deployment(serve.ingress(build)()).options(
        name="segmenter",
        num_replicas=shares.workers or 1,
        max_ongoing_requests=options.limits.streams + _SPARE_REQUESTS,
        ray_actor_options={"num_cpus": shares.cpus, "num_gpus": shares.gpus},
        graceful_shutdown_timeout_s=place.grace,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=quiet,
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": place.host, "port": place.port},
        logging_config=quiet,
    )
    try:
        serve.run(deployment.bind(), name="rvos", route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise BackendError(f"Ray Serve does not start: {one_line(error)}; see --debug") from error


def _wait_until_ready(options: ServerOptions, host: str, port: int, replicas: int) -> None:
    """Ask until every replica has said that it is ready. Raises BackendError."""
    target = callable_host(host)
    headers = {} if options.token is None else {"authorization": f"Bearer {options.token}"}
    deadline, ready = time.monotonic() + _READY_SECONDS, set[str]()
    while len(ready) < replicas:
        stopping.check()
        if time.monotonic() > deadline:
            raise BackendError(f"the server is not ready after {_READY_SECONDS:g} s; see --debug")
        try:
            connection = http.client.HTTPConnection(target, port, timeout=_READY_SECONDS)
            connection.request("GET", "/readyz", headers=headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            connection.close()
        except (OSError, ValueError, http.client.HTTPException):
            time.sleep(_WAIT)
            continue
        if answer.status == 200:
            ready.add(content["replica"])
        elif "message" in content:
            raise BackendError(content["message"])
        else:
            time.sleep(_WAIT)


def print_line(text: str) -> None:
    """Print to the true standard output, which Ray's is not (see ``connected``)."""
    assert sys.__stdout__ is not None
    sys.__stdout__.write(text + "\n")
    sys.__stdout__.flush()
