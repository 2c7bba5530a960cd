"""Workers of a real Ray on this machine: jobs, what goes wrong in them, workers that are lost. And what is wrong before that."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import PdtrimError, PluginError
from pdtrim_core.workers import cluster
from pdtrim_core.workers.cluster import ray_workers
from pdtrim_core.workers.ray_executor import JobError

NO_RAY = importlib.util.find_spec("ray") is None


def test_without_ray_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PdtrimError) as error, ray_workers(2):
        pass
    assert str(error.value) == "workers need Ray, which is not installed: pip install 'pdtrim-core[ray]'"


@pytest.mark.skipif(NO_RAY, reason="Ray is not installed")
@pytest.mark.parametrize("address", ["ray://head:10001", "head", ":6379", "head:x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(PdtrimError) as error, ray_workers(2, address):
        pass
    assert str(error.value) == (
        f"--address {address}: give the head of a Ray cluster as host:port, such as 10.0.0.5:6379, or say auto on one of its "
        "machines"
    )


@pytest.mark.skipif(NO_RAY, reason="Ray is not installed")
def test_an_address_at_which_nothing_answers_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(PdtrimError) as error, ray_workers(2, address):
        pass
    assert str(error.value).startswith(f"no Ray cluster answers at {address} (")
    assert str(error.value).endswith("): start one with ray start --head, or leave out --address")
    assert time.monotonic() - started < cluster.ANSWER_SECONDS + 5


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad request\r\n\r\n", b"", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_an_address_at_which_something_else_answers_is_said_at_once(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        with pytest.raises(PdtrimError, match=f"no Ray cluster answers at {address} "), ray_workers(2, address):
            pass
        serving.join()


@pytest.mark.skipif(NO_RAY, reason="Ray is not installed")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_workers_do_jobs_and_are_replaced_when_they_are_lost(tmp_path: Path) -> None:
    """One test for all of it: starting Ray takes seconds."""
    said: list[str] = []

    def where(cache: Any) -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    def square(cache: Any, number: int) -> int:
        return number * number

    def fails(cache: Any, kind: str) -> None:
        raise {"user": PdtrimError, "plugin": PluginError, "memory": torch.OutOfMemoryError, "bug": KeyError}[kind]("why")

    def size(cache: Any, parcel: Any) -> int:
        return len(parcel())

    def dies_once(cache: Any, mark: str) -> str:
        if not Path(mark).exists():
            Path(mark).write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    def always_dies(cache: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with ray_workers(2, say=said.append) as executor:
        places = [future.result() for future in executor.everywhere(where)]
        assert len({pid for pid, _ in places} | {os.getpid()}) == 3
        assert {threads for _, threads in places} == {executor.threads}
        assert [future.result() for future in [executor.submit(square, n) for n in range(9)]] == [n * n for n in range(9)]
        for kind, error, text in (
            ("user", PdtrimError, "^why$"),
            ("plugin", PluginError, "^why$"),
            ("memory", torch.OutOfMemoryError, "^why$"),
            ("bug", JobError, "KeyError: 'why'"),
        ):
            with pytest.raises(error, match=text):
                executor.submit(fails, kind).result()
        assert executor.submit(size, executor.parcel(b"x" * 10**6)).result() == 10**6
        assert executor.submit(dies_once, str(tmp_path / "mark")).result() == "done"
        assert said[1:] == ["a worker was lost; what it was at is measured again by another"]
        with pytest.raises(
            PdtrimError, match=r"^3 workers were lost at the same work, perhaps for want of memory; the last one: "
        ):
            executor.submit(always_dies).result()
        assert [future.result()[1] for future in executor.everywhere(where)] == [executor.threads] * 2
        last = {future.result()[0] for future in executor.everywhere(where)}
    for pid in last:
        _wait_for_end(pid)


def _wait_for_end(pid: int) -> None:
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"the worker {pid} is still there")
