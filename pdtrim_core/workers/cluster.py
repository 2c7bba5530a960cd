"""Ray, started on this machine or found at an address, and the workers on it; what can be wrong is said in one line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.host.sources import engine
from pdtrim_core.workers import check_installed
from pdtrim_core.workers.ray_executor import RayExecutor
from pdtrim_core.workers.rooms import Machine, Room, room_for
from pdtrim_core.workers.worker import About, Worker

AUTO = "auto"
STORE_BYTES = 2**28
"""Ray's shared memory on a machine where we start it: what does not fit goes to the disk, and little is sent."""
ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer at all."""
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""A frame of HTTP/2 with no settings: its length, its kind, flags and stream."""
HTTP2_BEGINS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
"""What a client of HTTP/2, and so of gRPC, says first (RFC 9113, section 3.4)."""
STARTS = 2
"""How often Ray is started on this machine: where it is busy, one of Ray's own parts may be too late for the others."""
START_SECONDS = 300.0
"""How long a worker may take to start: on a busy machine torch alone takes a minute to load."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_agent_register_timeout_ms": "120000"}
"""What Ray is started with: it tells nobody of its use, leaves devices as they are, and waits longer for its own parts."""


@contextmanager
def ray_workers(
    count: int | None = None, address: str | None = None, say: Callable[[str], None] = lambda text: None
) -> Iterator[RayExecutor]:
    """Give an executor with so many workers, which end with the context.

    Without an address Ray is started on this machine, and ended; `auto` finds the one that runs here, and host:port names the
    head of a cluster. Without a count there is one worker an accelerator, or else one for every four processors. Raises
    `PdtrimError` where Ray is not installed, where no cluster answers, where there are more workers than processors, and where a
    worker has other code than this process.
    """
    check_installed()
    with _connected(address) as ray:
        room = room_for(count, _machines(ray))
        try:
            executor = RayExecutor(
                lambda: _started(ray, room),
                lambda worker: _check_started(ray, room, worker),
                count=room.workers,
                threads=room.processors,
                say=say,
            )
        except RuntimeError as error:  # Ray's own, when it is shut down meanwhile
            raise PdtrimError(f"no workers can be started: {reason_of(error)}") from error
        try:
            say(_told(room))
            yield executor
        finally:
            with suppress(Exception):  # whatever is the matter with workers that are to end anyway
                executor.close()


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Give Ray, connected to a cluster; a connection that is there already is used and left."""
    if address is not None:
        _check_answers(address)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray  # noqa: PLC0415 - an extra, slow to import

    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES}
    own["num_cpus"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    options = {**(own if address is None else {"address": address}), "log_to_driver": False, "logging_level": logging.ERROR}
    for attempt in range(STARTS if address is None else 1):
        try:
            ray.init(**options)
            break
        except Exception as error:  # whatever Ray raises, it is why there is no cluster
            with suppress(Exception):  # the same
                ray.shutdown()
            if address is None and attempt + 1 < STARTS:
                continue
            what = "Ray cannot be started on this machine" if address is None else f"the Ray cluster at {address} cannot be used"
            raise PdtrimError(f"{what}: {reason_of(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise `PdtrimError` where nothing answers at an address, since Ray itself goes on trying for minutes."""
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise PdtrimError(
            f"--address {address}: give the head of a Ray cluster as host:port, such as 10.0.0.5:6379, or say auto on one of its "
            "machines"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            reason = "" if _speaks_grpc(connection) else "something else is there"
    except (OSError, OverflowError) as error:
        reason = reason_of(error)
    if reason:
        raise PdtrimError(
            f"no Ray cluster answers at {address} ({reason}): start one with ray start --head, or leave out --address"
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Tell whether a server speaks the protocol of a cluster's head, which is gRPC's; one behind TLS is not asked."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    connection.settimeout(ANSWER_SECONDS)
    connection.sendall(HTTP2_BEGINS)
    answer = b""
    while len(answer) < len(SETTINGS):
        more = connection.recv(len(SETTINGS) - len(answer))
        if not more:
            return False
        answer += more
    # Settings come first, whatever their length.
    return answer[3:5] == SETTINGS[3:5]


def _machines(ray: Any) -> list[Machine]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in resources]


def _started(ray: Any, room: Room) -> Any:
    """Begin to start a worker."""
    kind = ray.remote(num_cpus=room.processors, num_gpus=room.accelerators, max_restarts=0)(Worker)
    return kind.remote(room.processors, str(Path.cwd()))


def _check_started(ray: Any, room: Room, worker: Any) -> None:
    """Wait for a worker. Raises `PdtrimError` where it does not come, or has other code than this process."""
    try:
        about: About = ray.get(worker.about.remote(), timeout=START_SECONDS)
    except ray.exceptions.GetTimeoutError:
        ray.kill(worker)
        raise PdtrimError(
            f"no worker started within {START_SECONDS:.0f} s: is {room.processors} of its processors free on a machine of the "
            "cluster? ray status tells"
        ) from None
    except ray.exceptions.RayError as error:
        reason = str(error)
        if "No module named 'pdtrim_core" in reason:
            version = metadata.version("pdtrim-core")
            raise PdtrimError(
                f"a worker has no pdtrim-core {version}: install the same everywhere, such as in its image"
            ) from error
        raise PdtrimError(f"a worker cannot be started: {reason_of(error)}") from error
    own = engine()
    others = [
        f"{name} {about.code.get(name, 'not at all')} (here {code})" for name, code in own.items() if about.code.get(name) != code
    ]
    if others:
        ray.kill(worker)
        raise PdtrimError(f"the worker on {about.machine} has {', '.join(others)}: install the same versions everywhere")


def _told(room: Room) -> str:
    each = "1 thread" if room.processors == 1 else f"{room.processors} threads"
    devices = f" and {room.accelerators:.2g} accelerators" if room.accelerators else ""
    return f"{room.workers} worker{'s' * (room.workers > 1)} with {each}{devices} each"
